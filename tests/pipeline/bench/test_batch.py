from __future__ import annotations

import json
from pathlib import Path

import pytest

import run_pipeline
from pipeline.batch.batch import BatchOptions
from pipeline.bench.batch_scale import Costs, SimulatedEngine, forecast, memory_of_driver, simulate
from tests.videos import pattern, write_video

OFF = [f"--set={stage}.enabled=false" for stage in ("extract", "cosegment", "propagate", "track", "annotate")]


def test_the_slowest_of_workers_driver_and_storage_limits_a_batch() -> None:
    costs = Costs(10.0, 0.001, 0.0, 0.2, 5, 0.0, 0.0)
    assert forecast(costs, 1000, 10).seconds == 1000
    assert [forecast(costs, 1000, workers).limit for workers in (1, 45, 60, 1000)] == [
        "workers", "workers", "storage", "storage",
    ]  # fmt: skip
    assert forecast(Costs(1.0, 0.5, 0.0, 0.2, 5, 0.0, 0.0), 1000, 1000).limit == "driver"
    assert forecast(costs, 1001, 1000).storage_busy == 1
    # 11 videos on 10 workers take as long as 20.
    assert forecast(costs, 11, 10).seconds == 20


def test_the_simulated_batch_is_a_whole_one(tmp_path: Path) -> None:
    seconds, table_bytes = simulate(tmp_path, 300)
    table = json.loads((tmp_path / "batch.json").read_text())
    assert table["counts"]["done"] == len({video["name"] for video in table["videos"]}) == 300
    assert table_bytes * 300 == (tmp_path / "batch.json").stat().st_size
    assert 0 < seconds < 0.1
    assert 100 < memory_of_driver(tmp_path / "again", 2000) < 10_000


def test_the_commands_write_their_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def simulated(options: BatchOptions) -> SimulatedEngine:
        Path(options.output).mkdir()
        return SimulatedEngine(options.workers or 1)

    monkeypatch.setattr("pipeline.bench.batch.make_engine", simulated)
    video = write_video(tmp_path / "v.mp4", (pattern(i, height=48, width=64) for i in range(3)))
    arguments = ["bench", "batch", "--source", str(video), "--output", str(tmp_path / "n.json"), *OFF]
    assert run_pipeline.main([*arguments, "--scale", "--simulated", "200", "--video-seconds", "60"]) == 0
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert numbers["costs"]["video_seconds"] == 60
    assert [row["limit"] for row in numbers["forecasts"] if row["workers"] == 1] == ["workers"] * 3
    assert run_pipeline.main([*arguments, "--no-ray", "--videos", "1"]) == 0
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert [(row["engine"], row["workers"]) for row in numbers["engines"]] == [("local", 1), ("local", 2)]
    assert all(row["cost_seconds"] >= 0 and row["videos_per_second"] > 0 for row in numbers["engines"])
    assert "< 50: " in capsys.readouterr().out
