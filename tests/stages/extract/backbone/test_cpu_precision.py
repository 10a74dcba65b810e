"""Choosing bf16 or fp32 on a CPU: by instructions, by a measurement, and the same again from the cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stages.extract.backbone import cpu_precision
from stages.extract.backbone.device import pick_precision


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu_precision.faster_precision.cache_clear()
    yield
    cpu_precision.faster_precision.cache_clear()


def fixed(monkeypatch: pytest.MonkeyPatch, instructions: str, gain: float) -> list[int]:
    calls: list[int] = []

    def measured() -> float:
        calls.append(1)
        return gain

    monkeypatch.setattr(cpu_precision, "bf16_instructions", lambda: instructions)
    monkeypatch.setattr(cpu_precision, "measure_gain", measured)
    return calls


@pytest.mark.parametrize(
    ("instructions", "gain", "expected"),
    [("", 9.0, torch.float32), ("AMX", 3.0, torch.bfloat16), ("AVX-512 BF16", 1.1, torch.float32)],
)
def test_bf16_is_chosen_where_it_is_there_and_faster(
    monkeypatch: pytest.MonkeyPatch, instructions: str, gain: float, expected: torch.dtype
) -> None:
    fixed(monkeypatch, instructions, gain)
    assert pick_precision("auto", torch.device("cpu")) == expected
    assert pick_precision("fp32", torch.device("cpu")) == torch.float32
    reason = cpu_precision.faster_precision().reason()
    assert reason.startswith("bf16" if expected == torch.bfloat16 else "fp32")
    assert instructions in reason


def test_the_measurement_is_made_once_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = fixed(monkeypatch, "AMX", 3.0)
    first = cpu_precision.faster_precision()
    cpu_precision.faster_precision.cache_clear()
    assert cpu_precision.faster_precision() == first
    assert len(calls) == 1
    kept = json.loads((tmp_path / "liftstream" / "cpu_precision.json").read_text())
    assert kept["gain"] == 3.0


@pytest.mark.parametrize("content", ["", "[]", "{", '{"cpu": 1}', '{"gain": "x"}'])
def test_a_damaged_or_foreign_cache_is_measured_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> None:
    calls = fixed(monkeypatch, "AMX", 3.0)
    path = tmp_path / "liftstream" / "cpu_precision.json"
    path.parent.mkdir()
    path.write_text(content)
    assert cpu_precision.faster_precision().gain == 3.0
    assert len(calls) == 1


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fixed(monkeypatch, "AMX", 3.0)
    (tmp_path / "liftstream").write_text("a file in the way")
    assert cpu_precision.faster_precision().dtype == torch.bfloat16


def test_the_real_measurement_is_a_plausible_ratio() -> None:
    assert 0.01 < cpu_precision.measure_gain() < 100
