PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes that run the tests: one per core, at most 4, as some tests start processes of their own.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 4 ] && n=4; echo $$n)

.PHONY: demo test test-long clean

demo: $(VENV)/.installed
	$(BIN)/python run_pipeline.py demo

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Tests that take minutes: many kills, many videos.
test-long: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m long

# The stamps make a second run skip the installation until pyproject.toml changes.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "liftstream needs Python 3.11 or later"'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) outputs .mypy_cache .ruff_cache .pytest_cache
