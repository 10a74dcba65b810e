"""A detector of another package in a batch: its boxes, its part in what counts as finished, and its errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import run_pipeline
from pipeline.batch.jobs import VideoJob, WorkerSettings
from pipeline.batch.worker import Worker
from pipeline.core.errors import ConfigError
from pipeline.flow import load_flow_config, run
from pipeline.image_detector import load_image_detector
from tests.pipeline.batch.clips import SETTINGS, hashes

MODULE = """
import numpy as np
import supervision as sv

loads = []

def load(argument):
    if argument == "missing.pt":
        raise OSError(f"{argument} is not a model")
    loads.append(argument)
    return lambda image: sv.Detections(np.array([[8, 8, 30, 30]], np.float32), confidence=np.array([0.9]))

def broken(image):
    raise ValueError("no such layer")
"""
CONFIG = load_flow_config(
    None, [*SETTINGS, "cosegment.enabled=false", "propagate.enabled=false", "annotate.enabled=false"]
)


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """``batch_boxes.py`` in the current folder, as a user has it."""
    path = tmp_path / "code" / "batch_boxes.py"
    path.parent.mkdir()
    path.write_text(MODULE)
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield path
    sys.modules.pop("batch_boxes", None)


def worker(output: Path, detector: str | None) -> Worker:
    return Worker(WorkerSettings(str(output), CONFIG.model_dump(mode="json"), detector=detector))


def test_its_boxes_are_tracked_as_by_run_and_it_is_loaded_once(clips: Path, tmp_path: Path) -> None:
    detector = "batch_boxes:load:a.pt"
    run(clips / "clip0.mp4", tmp_path / "run" / "clip0", CONFIG, detections=load_image_detector(detector))
    doing = worker(tmp_path / "out", detector)
    for name in ("clip0", "clip1"):
        assert doing.do(VideoJob(name, str(clips / f"{name}.mp4"))).status == "done"
    assert hashes(tmp_path / "out")["clip0"] == hashes(tmp_path / "run")["clip0"]
    assert len((tmp_path / "out" / "clip0" / "tracks.txt").read_text().splitlines()) == 10
    assert sys.modules["batch_boxes"].loads == ["a.pt", "a.pt"]  # once for run, once for the worker


def test_boxes_of_a_list_come_before_the_detector(clips: Path, tmp_path: Path) -> None:
    boxes = tmp_path / "det.txt"
    boxes.write_text("1,-1,1,1,20,20,1,-1,-1,-1\n")
    job = VideoJob("one", str(clips / "clip0.mp4"), detections=str(boxes))
    assert worker(tmp_path / "out", "batch_boxes:broken").do(job).status == "done"
    assert worker(tmp_path / "out", "batch_boxes:load:a.pt").do(job).status == "skipped"


def test_another_detector_or_another_file_of_it_is_another_run(clips: Path, tmp_path: Path, module: Path) -> None:
    job = VideoJob("one", str(clips / "clip0.mp4"))
    assert worker(tmp_path / "out", "batch_boxes:load:a.pt").do(job).status == "done"
    assert worker(tmp_path / "out", "batch_boxes:load:a.pt").do(job).status == "skipped"
    for other in ("batch_boxes:load:b.pt", None):
        outcome = worker(tmp_path / "out", other).do(job)
        assert outcome.status == "put_aside"
        assert "--overwrite" in str(outcome.error)
    module.write_text(MODULE + "\nNEW = 1\n")
    assert "the detector" in str(worker(tmp_path / "out", "batch_boxes:load:a.pt").do(job).error)


def test_a_detector_that_fails_on_a_video_fails_that_video(clips: Path, tmp_path: Path) -> None:
    outcome = worker(tmp_path / "out", "batch_boxes:broken").do(VideoJob("one", str(clips / "clip0.mp4")))
    assert outcome.status == "failed"
    assert "batch_boxes:broken: failed at frame 0 with ValueError" in str(outcome.error)


def test_a_worker_without_its_detector_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"failed with OSError: missing\.pt is not a model"):
        worker(tmp_path, "batch_boxes:load:missing.pt")


def test_the_command_refuses_a_wrong_name_before_any_video(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["batch", str(clips / "clip0.mp4"), "-o", str(tmp_path / "out"), "--detector"]
    assert run_pipeline.main([*arguments, "batch_boxes:fnd"]) == 2
    assert "module batch_boxes has no 'fnd'" in capsys.readouterr().err
    assert run_pipeline.main([*arguments, "batch_boxes:load:a.pt", "--set", "track.enabled=false"]) == 2
    assert "track.enabled is false" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
