from __future__ import annotations

import random
from pathlib import Path

import pytest

from pipeline.batch.names import safe_name, unique_names
from pipeline.core.files import path_inside

NASTY = [
    "..",
    ".",
    "",
    "/",
    "a/../..",
    "../evil",
    "a\\b",
    "C:x",
    "\x00",
    "a\nb",
    "...mp4",
    "batch.json",
    "é" * 200,
]
NASTY += ["é" * 200, ".batch", "~", "-rf", " ", "con:", "\ud800", "batch-3-of-16.json", "Index.html", "x" * 300]


@pytest.mark.parametrize("name", NASTY)
def test_a_name_is_one_visible_component_inside_the_output(name: str, tmp_path: Path) -> None:
    safe = safe_name(name)
    assert path_inside(tmp_path, safe).parent == tmp_path
    assert not safe.startswith(".")
    assert len(safe.encode()) <= 130
    assert safe.casefold() not in ("batch.json", "batch-3-of-16.json", "index.html")


def test_names_are_unique_and_do_not_depend_on_the_order() -> None:
    wanted = ["cam", "Cam", "cafe\u0301", "caf\u00e9", "street", *NASTY]
    keys = [f"/data/{number}" for number in range(len(wanted))]
    names = unique_names(wanted, keys)
    assert len({name.casefold() for name in names}) == len(names)
    assert names[4] == "street"
    order = list(range(len(wanted)))
    random.Random(0).shuffle(order)
    shuffled = unique_names([wanted[i] for i in order], [keys[i] for i in order])
    assert [shuffled[order.index(i)] for i in range(len(wanted))] == names
