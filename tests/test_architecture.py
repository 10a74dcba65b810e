from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import run_pipeline
from pipeline.core import errors
from tests.conftest import REPOSITORY

FLOORS: tuple[tuple[str, ...], ...] = (
    ("pipeline.core",),
    ("pipeline.formats",),
    (
        "stages.decode",
        "stages.extract",
        "stages.cosegment",
        "stages.propagate",
        "stages.track",
        "stages.annotate",
        "stages.write",
    ),
    (
        "pipeline.evaluation",
        "pipeline.training",
        "pipeline.prompts",
        "pipeline.run_record",
        "pipeline.assembly",
        "pipeline.image_detector",
    ),
    ("pipeline.report", "pipeline.export"),
    ("pipeline.session",),
    ("pipeline.flow",),
    ("pipeline.images", "pipeline.label", "pipeline.batch", "pipeline.preview", "pipeline.detect"),
    ("pipeline.local",),
    ("pipeline.bench",),
    ("pipeline.commands",),
    ("run_pipeline",),
)
"""The floors of the house from the ground up. A room imports itself and the floors below, not its neighbors."""

SOURCES = sorted(
    [
        *(REPOSITORY / "pipeline").rglob("*.py"),
        *(REPOSITORY / "stages").rglob("*.py"),
        REPOSITORY / "run_pipeline.py",
    ]
)
MAX_MODULE_LINES = 350


def imports_of(path: Path) -> Iterator[str]:
    """Absolute names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> tuple[int, str] | None:
    """The floor and the room a module lies in; None for the packages' own ``__init__`` and for libraries."""
    for floor, rooms in enumerate(FLOORS):
        for room in rooms:
            if module == room or module.startswith(f"{room}."):
                return floor, room
    return None


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_a_room_imports_only_the_floors_below_it(path: Path) -> None:
    name = module_of(path)
    if name in ("pipeline", "stages"):
        return
    here = room_of(name)
    assert here is not None, f"{name} stands on no floor"
    for imported in imports_of(path):
        there = room_of(imported)
        if there is not None and there != here:
            assert there[0] < here[0], f"{name} imports {imported}"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_no_module_is_too_long_to_read_at_once(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_MODULE_LINES


@pytest.mark.parametrize("path", [p for p in SOURCES if module_of(p).startswith("stages")], ids=module_of)
def test_stages_know_no_threads(path: Path) -> None:
    assert not {m for m in imports_of(path) if m.startswith(("threading", "pipeline.core.runner"))}


def test_the_runner_knows_no_torch() -> None:
    imported = imports_of(REPOSITORY / "pipeline" / "core" / "runner.py")
    assert not {m for m in imported if m.split(".")[0] in ("torch", "numpy")}


ASYNCHRONOUS = re.compile(
    r"torch\.cuda\.(Stream|Event|stream|StreamContext|synchronize|current_stream|default_stream|set_stream"
    r"|empty_cache|max_memory\w*|reset_peak\w*|graph|CUDAGraph|make_graphed_callables)\b"
    r"|\b(pin_memory|non_blocking|record_stream|record_event|wait_event|wait_stream)\b"
)


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_streams_events_and_pinned_copies_go_through_one_module(path: Path) -> None:
    if module_of(path) != "pipeline.core.device_stream":
        assert not ASYNCHRONOUS.search(path.read_text(encoding="utf-8"))


def test_the_error_tree_in_the_docstring_is_the_one_in_the_code() -> None:
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.LiftstreamError)]
    assert errors.__doc__ is not None
    for error in classes:
        assert error.__name__ in errors.__doc__
        assert error.exit_code == (2 if issubclass(error, errors.InputError) else 1)


def test_every_command_has_its_function_and_help() -> None:
    for entry in run_pipeline.COMMANDS.values():
        module, function = entry.target.split(":")
        assert inspect.getdoc(getattr(importlib.import_module(module), function))
        assert entry.help.endswith(".")


def test_the_list_of_commands_is_shown_without_loading_one() -> None:
    code = "import sys, run_pipeline; run_pipeline.main(['--help']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
