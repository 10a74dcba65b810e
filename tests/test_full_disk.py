"""What a run leaves when the disk is full or a file may not grow; each run is a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.test_kill_and_resume import SETTINGS, results
from tests.videos import pattern, write_video

FRAMES = 48


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pictures = [pattern(i % 20, height=96, width=128) for i in range(FRAMES)]
    return write_video(tmp_path_factory.mktemp("video") / "square.mp4", pictures)


def command(video: Path, output: Path, *more: str) -> list[str]:
    settings = [item for text in SETTINGS for item in ("--set", text)]
    return [sys.executable, "run_pipeline.py", "run", str(video), "--output", str(output), *settings, *more]


def playable_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def error_lines(process: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in process.stderr.splitlines() if line.startswith("error: ")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of six megabytes, where mounting one is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_once_there_is_room(
    small_disk: Path, video: Path, tmp_path: Path
) -> None:
    whole = subprocess.run(command(video, tmp_path / "whole"), cwd=REPOSITORY, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 5_980_000)
    full = subprocess.run(command(video, small_disk / "out"), cwd=REPOSITORY, capture_output=True, text=True)
    assert full.returncode == 1
    assert "Traceback" not in full.stderr
    (line,) = error_lines(full)
    assert "No space left on device" in line
    assert "--resume" in line
    folder = small_disk / "out" / "square"
    assert list((folder / "masks").glob("*.png")) or list((folder / "parts").glob("*.png"))
    videos = [folder / "annotated.mp4"] if (folder / "annotated.mp4").is_file() else []
    videos += sorted((folder / "checkpoint" / "video").glob("*.mp4"))[:1]
    assert any(playable_frames(path) for path in videos)
    filler.unlink()
    again = subprocess.run(
        command(video, small_disk / "out", "--resume"), cwd=REPOSITORY, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert results(folder) == results(tmp_path / "whole" / "square")


def test_a_limit_on_file_sizes_ends_in_one_line_and_the_next_input_is_run(tmp_path: Path) -> None:
    tiny = write_video(tmp_path / "tiny.mp4", [pattern(i, height=48, width=64) for i in range(3)])
    noise = np.random.default_rng(0).integers(0, 255, (24, 96, 128, 3), np.uint8)
    large = write_video(tmp_path / "large.mp4", noise)
    limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); "
    code = limit + "sys.argv = sys.argv[1:]; runpy.run_path('run_pipeline.py', run_name='__main__')"
    arguments = command(large, tmp_path / "out", "--set", "write.crf=0")[1:]
    arguments.insert(arguments.index(str(large)) + 1, str(tiny))
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert any("large" in line and "File too large" in line for line in error_lines(process)), process.stderr
    assert "1 of 2 inputs done" in process.stdout
    assert (tmp_path / "out" / "tiny" / "annotated.mp4").is_file()
    record = json.loads((tmp_path / "out" / "large" / "run.json").read_text())
    assert record["status"] in ("failed", "running")


def test_a_folder_that_cannot_be_made_is_one_line(video: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    process = subprocess.run(
        command(video, tmp_path / "file" / "out"), cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert process.returncode in (1, 2)
    assert "Traceback" not in process.stderr
    assert len(error_lines(process)) == 1
