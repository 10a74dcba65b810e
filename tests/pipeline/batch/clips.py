"""The videos of the batch's tests, their settings, and what ``run`` makes of them one by one."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pipeline.core.errors import InputError
from pipeline.core.threads import default_pools, set_thread_pools
from pipeline.flow import FlowConfig, load_flow_config, run
from stages.extract import Extractor
from tests.videos import pattern, write_video

SETTINGS = [
    "extract.backbone=vit_tiny_patch16_224",
    "extract.weights=random",
    "extract.short_side=48",
    "extract.facets=[key@11]",
    "cosegment.warmup_frames=6",
    "write.segment_frames=8",
    "write.checkpoint_frames=8",
    "write.encoder_preset=ultrafast",
    "write.report=false",
]
SIZES = ((48, 64, 25), (64, 48, 30), (48, 48, 12), (64, 96, 24), (50, 70, 15), (96, 64, 10))
GOOD = [f"clip{number}" for number in range(len(SIZES))]
DAMAGED, TEXT = "damaged", "text"


def settings() -> FlowConfig:
    return load_flow_config(None, SETTINGS)


def make_clips(folder: Path, *, frames: int = 10) -> Path:
    """Six good clips of different sizes and rates, one that is cut off, and one that is no video."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (height, width, rate) in zip(GOOD, SIZES, strict=True):
        pictures = (pattern(i % 10, height=height, width=width) for i in range(frames))
        write_video(folder / f"{name}.mp4", pictures, rate=rate)
    # The index is in front, so all frames are promised; the last part of the media data is cut off.
    noise = np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), np.uint8)
    whole = folder / f"{DAMAGED}.mp4"
    write_video(whole, noise, options={"g": "1"}, container_options={"movflags": "faststart"})
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (folder / f"{TEXT}.mp4").write_text("this is not a video")
    return folder


def make_long_clip(folder: Path, name: str, frames: int = 64) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pictures = (pattern(i % 16, height=48, width=64) for i in range(frames))
    return write_video(folder / f"{name}.mp4", pictures, options={"g": "12"})


def one_by_one(folder: Path, output: Path) -> dict[str, dict[str, str]]:
    """The hashes of what ``run`` writes for every video that it can read."""
    set_thread_pools(default_pools(1))  # as in a worker with one core: the bytes of the video depend on it
    config = settings()
    extractor = Extractor(config.extract)
    for video in sorted(folder.iterdir()):
        try:
            run(video, output / video.stem, config, extractor=extractor)
        except InputError:
            continue
    return hashes(output)


def hashes(output: Path) -> dict[str, dict[str, str]]:
    """The hash of every result, by video and relative path; records with times in them are left out."""
    return {
        folder.name: {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != "run.json"
        }
        for folder in sorted(output.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }


def holders(output: Path, name: str = "*") -> list[int]:
    """The processes that are at work on videos, from their locks."""
    pids = []
    for lock in (output / ".batch" / "locks").glob(name):
        try:
            pids.append(int(lock.read_text().rpartition(":")[2]))
        except (OSError, ValueError):
            continue
    return pids


def kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def killing(output: Path, name: str, *, times: int = 100, seed: int | None = None) -> Iterator[list[int]]:
    """Kill whoever works on the named video (a pattern), at once or at random moments; gives who was killed."""
    killed: list[int] = []
    over = threading.Event()
    random = np.random.default_rng(seed)

    def watch() -> None:
        while not over.wait(0.02 if seed is None else float(random.uniform(0.1, 0.8))):
            for pid in holders(output, name)[:1]:
                if len(killed) < times and pid not in killed and kill(pid):
                    killed.append(pid)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def command(folder: Path, out: Path, *more: str) -> list[str]:
    """The command line of a batch of one worker, to be run in the repository."""
    given = [f"--set={setting}" for setting in SETTINGS]
    program = [sys.executable, "run_pipeline.py", "batch", str(folder), "--output", str(out)]
    return [*program, "--workers", "1", "--cpus-per-worker", "1", *given, *more]
