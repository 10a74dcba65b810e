"""``bench endurance``: hours of video with every stage on, killed on the way and resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pipeline.bench.moving_squares import write_moving_squares
from pipeline.bench.resident_memory import resident_bytes
from stages.write.folder import CHECKPOINT, FILE_LIST, RECORD

_POLL_SECONDS = 0.5
_KILL_AT = 0.6
_SMALL = (
    "extract.backbone=vit_tiny_patch16_224",
    "extract.weights=random",
    "extract.short_side=96",
    "extract.precision=fp32",
)


def bench_endurance(
    hours: Annotated[float, typer.Option(help="Length of the video.")] = 3.0,
    frame_rate: Annotated[int, typer.Option(help="Its frames per second.")] = 2,
    mode: Annotated[str, typer.Option(help="cosegment.mode: streaming or two_pass.")] = "streaming",
) -> None:
    """Run a long video of 96 x 128 px, kill it with SIGKILL at 60 %, resume it, and print what it cost."""
    frames = round(hours * 3600 * frame_rate)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video = write_moving_squares(folder / "long.mp4", frames, frame_rate=frame_rate)
        first = _run(video, folder / "out", frames, mode, kill_at=round(_KILL_AT * frames))
        second = _run(video, folder / "out", frames, mode, resume=True)
        record = json.loads((folder / "out" / video.stem / RECORD).read_text(encoding="utf-8"))
    _show(frames, frame_rate, first, second, record)


@dataclass(slots=True)
class _Watched:
    """A run as seen from outside: its resident memory against the frames written."""

    seconds: float = 0.0
    seconds_to_first_frame: float | None = None
    resident_bytes: dict[int, int] = field(default_factory=dict)


def _run(
    video: Path, output: Path, frames: int, mode: str, *, kill_at: int | None = None, resume: bool = False
) -> _Watched:
    """Start the command line on the video and watch it until it ends or is killed."""
    settings = [item for text in (*_SMALL, f"cosegment.mode={mode}") for item in ("--set", text)]
    command = [sys.executable, "run_pipeline.py", "run", str(video), "-o", str(output), *settings]
    watched, started = _Watched(), time.monotonic()
    before: int | None = None
    process = subprocess.Popen(
        [*command, *(["--resume"] if resume else [])], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    with tqdm(total=frames, unit="frame", file=sys.stderr, mininterval=1.0) as bar:
        for done in _frames_written(process, output / video.stem / CHECKPOINT / FILE_LIST):
            bar.update(done - bar.n)
            # A resumed run first cuts the list back to its checkpoint; new frames come after that.
            before = done if before is None else min(before, done)
            if watched.seconds_to_first_frame is None and done > before:
                watched.seconds_to_first_frame = time.monotonic() - started
            with suppress(OSError):  # it may have ended meanwhile
                watched.resident_bytes[done] = resident_bytes(process.pid)
            if kill_at is not None and done >= kill_at:
                process.send_signal(signal.SIGKILL)
    watched.seconds = time.monotonic() - started
    if process.wait() not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the run ended with exit code {process.returncode}")
    return watched


def _frames_written(process: subprocess.Popen[bytes], file_list: Path) -> Iterator[int]:
    """The number of part maps listed so far, twice a second, until the process ends."""
    lines, position = 0, 0
    for _ in count():
        if process.poll() is not None:
            return
        try:
            size = file_list.stat().st_size
            lines, position = (0, 0) if size < position else (lines, position)
            with file_list.open("rb") as file:
                file.seek(position)
                added = file.read()
            lines, position = lines + added.count(b"  parts/"), position + len(added)
        except FileNotFoundError:
            pass
        yield lines
        time.sleep(_POLL_SECONDS)


def _show(frames: int, frame_rate: int, first: _Watched, second: _Watched, record: dict[str, object]) -> None:
    checkpoints = record["checkpoints"]
    assert isinstance(checkpoints, dict)
    table = Table(title=f"{frames} frames, {frames / frame_rate / 3600:.1f} hours", title_justify="left")
    table.add_column("what")
    table.add_column("measured", justify="right")
    early = _memory_near(first, 0.05 * frames)
    table.add_row("resident after 5 %, first process", f"{early / 2**20:.0f} MiB")
    table.add_row("resident when it was killed", f"{_memory_near(first, frames) / 2**20:.0f} MiB")
    table.add_row("resident at the end, resumed process", f"{_memory_near(second, frames) / 2**20:.0f} MiB")
    table.add_row("resumed at frame", str(record["resumed_at"]))
    if second.seconds_to_first_frame is not None:
        table.add_row("from the start of --resume to a new frame", f"{second.seconds_to_first_frame:.1f} s")
    table.add_row("checkpoints taken, both processes", str(checkpoints["written"]))
    share = float(checkpoints["seconds"]) / second.seconds
    table.add_row("checkpoint cost, thread time over wall time", f"{share:.2%}")
    rate = (frames - int(str(record["resumed_at"]))) / second.seconds
    table.add_row("frames per second", f"{rate:.0f}")
    Console().print(table)


def _memory_near(watched: _Watched, frame: float) -> int:
    """Resident bytes at the last look before ``frame``, or the first look."""
    seen = [index for index in watched.resident_bytes if index <= frame]
    return watched.resident_bytes[max(seen) if seen else min(watched.resident_bytes)]
