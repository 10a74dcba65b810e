"""``bench gpu`` on the CPU: its steps, what it writes, what it refuses, and how it judges a trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.bench.gpu import checks
from pipeline.bench.gpu_measures import compiled_rate
from pipeline.bench.gpu_trace import DEVICE_WORK, idle_time, intervals_of
from pipeline.commands.cli import main
from pipeline.core.records import Frame
from stages.extract import ExtractConfig, Extractor

TINY = [
    "extract.backbone=vit_tiny_patch16_224", "extract.weights=random", "extract.precision=fp32",
    "extract.saliency=none", "cosegment.enabled=false", "propagate.enabled=false", "annotate.enabled=false",
]  # fmt: skip


def run(*arguments: str) -> int:
    return main(["bench", "gpu", *arguments, *[part for item in TINY for part in ("--set", item)]])


def test_a_small_version_on_the_cpu_writes_what_it_found(clip: Path, tmp_path: Path) -> None:
    small = ["--frames", "3", "--sizes", "32", "--batches", "2", "--device", "cpu"]
    assert run("-o", str(tmp_path), "--source", str(clip), *small) == 0
    found = json.loads((tmp_path / "bench_gpu.json").read_text())
    assert found["agreement"]["max_difference"] == 0
    assert found["agreement"]["frames"] == 3
    assert found["decoders"]["pyav on cpu"] > 0
    [row] = found["runs"]
    assert row["flow"]["frames"] == 3
    assert {stage["frames"] for stage in row["stages"]} == {3}
    bound = min(row["model_frames_per_second"], found["decode_frames_per_second"])
    assert row["flow_over_bound"] == pytest.approx(row["flow"]["frames_per_second"] / bound)
    assert 0 < row["idle"]["busy_seconds"] <= row["idle"]["span_seconds"]
    page = (tmp_path / "bench_gpu.md").read_text()
    assert "| 32 | 2 |" in page
    assert "| extract |" in page


def test_the_forward_is_measured_plain_and_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def stand_in(function: Any, **options: Any) -> Any:
        calls.append(options["mode"])
        return function

    monkeypatch.setattr(torch, "compile", stand_in)
    settings = [item.removeprefix("extract.").split("=") for item in TINY if item.startswith("extract.")]
    values: dict[str, Any] = dict(settings)
    extractor = Extractor(ExtractConfig(**values, short_side=32, batch_size=2, device="cpu"))
    list(extractor([Frame(np.zeros((32, 48, 3), np.uint8), 0, 0.0)]))
    assert all(rate > 0 for rate in compiled_rate(extractor, 1).values())
    assert calls == ["default"]


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--device", "cuda:99"], "device 'cuda:99'"), (["--device", "cpu", "--sizes", "32,x"], "--sizes '32,x'")],
)
def test_what_cannot_be_measured_ends_with_2(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("-o", str(tmp_path / "out"), *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_idle_time_of_a_trace_counts_only_the_cards_work(tmp_path: Path) -> None:
    events = [
        {"ph": "X", "cat": "kernel", "ts": 0, "dur": 4e6},
        {"ph": "X", "cat": "gpu_memcpy", "ts": 3e6, "dur": 2e6},
        {"ph": "X", "cat": "cpu_op", "ts": 5e6, "dur": 3e6},
        {"ph": "X", "cat": "kernel", "ts": 8e6, "dur": 2e6},
        {"ph": "i", "cat": "kernel", "ts": 9e6},
    ]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": events}))
    idle = idle_time(intervals_of(tmp_path / "trace.json", DEVICE_WORK))
    assert (idle.span_seconds, idle.busy_seconds, idle.longest_gap_seconds) == (10, 7, 3)
    assert idle.share == pytest.approx(0.3)
    assert idle_time([]).share == 1


def test_failed_tests_and_other_results_are_not_passed_over() -> None:
    good = {"min_cosine": 1.0, "mask_agreement": 1.0}
    run_ = {"flow_over_bound": 0.9, "idle": {"idle_share": 0.01}}
    found = {"tests": {"passed": None}, "agreement": good, "runs": [run_]}
    assert checks(found, tests_needed=False) == dict.fromkeys(("tests", "agreement", "rate", "idle"), True)
    assert not checks(found, tests_needed=True)["tests"]
    assert not checks(found | {"agreement": good | {"min_cosine": 0.9}}, tests_needed=False)["agreement"]
    assert not checks(found | {"runs": [{"skipped": "memory"}]}, tests_needed=False)["rate"]
