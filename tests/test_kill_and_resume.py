from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.records import Packet
from pipeline.flow import load_flow_config, run
from pipeline.formats.palette import write_indexed_png
from tests.conftest import REPOSITORY
from tests.videos import pattern, write_video

SETTINGS = [
    "extract.short_side=56",
    "cosegment.warmup_frames=6",
    "write.segment_frames=8",
    "write.checkpoint_frames=8",
    "write.encoder_preset=ultrafast",
]

SMALL_MODEL = [
    *SETTINGS,
    "extract.backbone=vit_tiny_patch16_224",
    "extract.weights=random",
    "extract.facets=[key@11]",
    "extract.short_side=48",
]
"""For many runs: half of the time of the bundled model, the same stages."""


class Killer:
    """The process of :mod:`tests.killing`, which starts a run in milliseconds."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.killing"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, source: Path, output: Path, **request: Any) -> tuple[int, float]:
        """Exit code (or minus the signal) and CPU seconds of one run."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        values = {"source": str(source), "output": str(output), "settings": SETTINGS, **request}
        self._process.stdin.write(json.dumps(values) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["code"], answer["cpu_seconds"]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    killer = Killer()
    yield killer
    killer.close()


def make_video(folder: Path, frames: int) -> Path:
    """A square that moves, with a cut in the middle, so that every stage has something to remember."""
    pictures = [pattern(i % 20, height=48, width=64) for i in range(frames)]
    pictures[frames // 2 :] = [picture[::-1, ::-1].copy() for picture in pictures[frames // 2 :]]
    return write_video(folder / "square.mp4", pictures, options={"crf": "18", "g": "12"})


def first_mask(folder: Path) -> str:
    """The square of the first frame, as a mask file."""
    mask = np.zeros((48, 64), np.uint8)
    mask[12:36, 4:20] = 1
    write_indexed_png(folder / "first.png", mask)
    return str(folder / "first.png")


def results(folder: Path) -> dict[str, str]:
    """The hash of every result, by relative path; ``run.json`` and the page hold times and are left out."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("run.json", "report.html")
    }


def kill_and_resume(killer: Killer, video: Path, folder: Path, moments: int, **request: Any) -> None:
    """Kill a run at seeded moments, each in a folder of its own, resume it, and compare every byte."""
    code, seconds = killer.run(video, folder / "whole", **request)
    assert code == 0
    whole = results(folder / "whole")
    assert {"annotated.mp4", "masks/00000.png", "parts/00000.png"} <= set(whole)
    assert not request.get("masks") or {"tracks.txt", "objects.csv"} <= set(whole)
    rng = random.Random(0)
    killed = resumed_from_a_checkpoint = 0
    for moment in range(moments):
        output = folder / f"killed{moment:02d}"
        code, _ = killer.run(video, output, kill_after=rng.uniform(0.1, 0.95) * seconds, **request)
        killed += code == -signal.SIGKILL
        resumed_from_a_checkpoint += any((output / "checkpoint").glob("state-*"))
        code, _ = killer.run(video, output, resume=True, **request)
        assert code == 0
        assert results(output) == whole, f"moment {moment}"
    assert killed >= moments // 2
    assert resumed_from_a_checkpoint >= moments // 3


def test_a_killed_run_that_is_resumed_writes_the_same_bytes(killer: Killer, tmp_path: Path) -> None:
    kill_and_resume(killer, make_video(tmp_path, 60), tmp_path, moments=4, masks=first_mask(tmp_path))


def test_two_passes_are_resumed_too(killer: Killer, tmp_path: Path) -> None:
    settings = [*SETTINGS, "cosegment.mode=two_pass"]
    kill_and_resume(killer, make_video(tmp_path, 48), tmp_path, moments=4, settings=settings)


def test_a_run_stopped_between_the_second_pass_s_first_frames_and_its_first_checkpoint(tmp_path: Path) -> None:
    """The newest checkpoint is one of the first pass, and frames of the second are written already."""
    video = make_video(tmp_path, 24)
    config = load_flow_config(None, [*SETTINGS, "cosegment.mode=two_pass"])

    def stop(packet: Packet) -> None:
        if packet.index == 2:
            raise KeyboardInterrupt

    run(video, tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        run(video, tmp_path / "stopped", config, on_packet=stop)
    assert run(video, tmp_path / "stopped", config, resume=True).resumed_at == 0
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_twenty_moments_of_a_run_of_300_frames(killer: Killer, tmp_path: Path) -> None:
    video, mask = make_video(tmp_path, 300), first_mask(tmp_path)
    kill_and_resume(killer, video, tmp_path, moments=20, masks=mask, settings=SMALL_MODEL)


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(killer: Killer, tmp_path: Path) -> None:
    video = make_video(tmp_path, 60)
    code, seconds = killer.run(video, tmp_path / "whole")
    assert code == 0
    for _ in range(60):
        code, _ = killer.run(video, tmp_path / "killed", resume=True, kill_after=0.6 * seconds)
        if code == 0:
            break
    assert code == 0
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


def test_a_run_that_is_terminated_is_playable_and_can_be_resumed(killer: Killer, tmp_path: Path) -> None:
    video = make_video(tmp_path, 60)
    _, seconds = killer.run(video, tmp_path / "whole")
    code, _ = killer.run(video, tmp_path / "stopped", kill_after=0.6 * seconds, signal=signal.SIGINT)
    if code == 0:
        pytest.skip("the run was over before the signal came")
    assert code == 130
    record = json.loads((tmp_path / "stopped" / "run.json").read_text())
    assert record["status"] == "interrupted"
    assert (tmp_path / "stopped" / "annotated.mp4").is_file()
    code, _ = killer.run(video, tmp_path / "stopped", resume=True)
    assert code == 0
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")
