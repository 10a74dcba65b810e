from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import run_pipeline
from pipeline import errors
from tests.conftest import REPOSITORY

SOURCES = sorted([*(REPOSITORY / "pipeline").rglob("*.py"), *(REPOSITORY / "stages").rglob("*.py")])


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_go_downwards(path: Path) -> None:
    name = module_of(path)
    imported = set(imports_of(path))
    knows_stages = {m for m in imported if m.split(".")[0] == "stages"}
    if name.startswith("pipeline.") and name != "pipeline.flow" and not name.startswith("pipeline.commands."):
        assert not knows_stages, "only the flow and the commands know the stages"
    if name.startswith("stages.ops"):
        assert all(m.startswith("stages.ops") for m in knows_stages), "operations know no stage"
    if name.startswith("stages."):
        assert not {m for m in imported if m.startswith(("pipeline.flow", "pipeline.commands", "pipeline.runner"))}
        assert not {m for m in imported if m.split(".")[0] == "threading"}, "stages know no threads"
    if name.startswith(("pipeline.models", "pipeline.formats")):
        assert not {m for m in imported if m.startswith(("pipeline.evaluation", "pipeline.commands"))}


def test_the_runner_knows_no_torch() -> None:
    assert not {
        m for m in imports_of(REPOSITORY / "pipeline" / "runner.py") if m.split(".")[0] in ("torch", "numpy")
    }


def test_the_error_tree_in_the_docstring_is_the_one_in_the_code() -> None:
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.LiftstreamError)]
    assert errors.__doc__ is not None
    for error in classes:
        assert error.__name__ in errors.__doc__
        assert error.exit_code == (2 if issubclass(error, errors.InputError) else 1)


def test_every_command_has_its_function_and_help() -> None:
    for target in run_pipeline.COMMANDS.values():
        module, function = target.split(":")
        assert inspect.getdoc(getattr(importlib.import_module(module), function))
