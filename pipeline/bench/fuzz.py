"""``bench fuzz``: damaged videos through decode, against an independent count of the frames FFmpeg can decode.

Small clips in several containers are made on the spot, each frame with its index as black and white blocks, and
then damaged at random with a fixed seed. Each file is read in a worker process with a hard time limit. Checks:

- no exception but the project's own, no hang, no signal;
- at least as many frames as plain FFmpeg decodes packet by packet (:func:`count_decodable`);
- no frame lost in silence: fewer frames than the undamaged clip has are reported as damage or as a warning;
- indices: the blocks of a frame show the index the decoder gave it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import av
import av.error
import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table

from pipeline.core.errors import LiftstreamError
from pipeline.core.files import write_json_whole
from stages.decode import DecodeConfig, Decoder, probe

NUM_FRAMES = 60
_BLOCK_PX, _ROWS, _COLUMNS = 16, 3, 4
_BITS = _ROWS * _COLUMNS // 2
TIME_LIMIT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Clip:
    """How a clip is encoded: file suffix, FFmpeg's encoder and its options."""

    suffix: str
    codec: str
    options: dict[str, str]


CLIPS = (
    Clip("mp4", "libx264", {"g": "12", "bf": "2"}),
    Clip("mkv", "libx264", {"g": "12", "bf": "2"}),
    Clip("ts", "libx264", {"g": "12", "bf": "0"}),
    Clip("avi", "mpeg4", {"g": "12"}),
    Clip("webm", "libvpx-vp9", {"g": "12", "deadline": "realtime", "cpu-used": "8"}),
    Clip("mov", "libx264", {"g": "30", "bf": "0"}),
    Clip("flv", "libx264", {"g": "12", "bf": "2"}),
    Clip("mpg", "mpeg2video", {"g": "12", "bf": "2"}),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What decode made of one damaged file.

    Attributes:
        name: File name; it starts with the kind of damage.
        decodable: Frames plain FFmpeg decodes.
        frames: Frames that came out.
        status: ``done``, ``damaged``, ``refused`` (an input error), or what went wrong: ``crashed``, ``hung``, or
            the name of an exception that is not the project's.
        said: Damage or warnings were reported.
        misplaced: Frames whose picture shows another index than the decoder gave.
        missing: Frames reported as missing.
        line: The damage or error in words.
    """

    name: str
    decodable: int
    frames: int
    status: str
    said: bool = False
    misplaced: int = 0
    missing: int = 0
    line: str = ""

    @property
    def lost_in_silence(self) -> int:
        """Frames of the undamaged clip that neither came out nor were reported in any way."""
        return 0 if self.said or self.status != "done" else max(0, NUM_FRAMES - self.frames)

    @property
    def given_up(self) -> int:
        """Frames FFmpeg decodes that did not come out."""
        return max(0, self.decodable - self.frames)


def numbered_frame(index: int) -> npt.NDArray[np.uint8]:
    """uint8 ``(48, 64, 3)``: twelve blocks that hold the index and its complement in binary, under noise.

    >>> shown_index(numbered_frame(37))
    37
    """
    bits = [(index >> bit) & 1 for bit in range(_BITS)]
    blocks = np.array([*bits, *(1 - bit for bit in bits)], np.int16).reshape(_ROWS, _COLUMNS)
    image = np.kron(40 + 170 * blocks, np.ones((_BLOCK_PX, _BLOCK_PX), np.int16))
    noise = np.random.default_rng(index).integers(-30, 31, image.shape)
    return np.repeat((image + noise).astype(np.uint8)[..., None], 3, axis=2)


def shown_index(image: npt.NDArray[np.uint8]) -> int | None:
    """The index a frame of :func:`numbered_frame` shows, None if its blocks contradict each other."""
    means = image[..., 1].reshape(_ROWS, _BLOCK_PX, _COLUMNS, _BLOCK_PX).mean(axis=(1, 3)).reshape(-1)
    if (abs(means - 125) < 45).any():
        return None
    bits = (means > 125).astype(int)
    if (bits[:_BITS] == bits[_BITS:]).any():
        return None
    return int((bits[:_BITS] << np.arange(_BITS)).sum())


def make_clip(path: Path, clip: Clip, num_frames: int = NUM_FRAMES) -> Path:
    """Encode numbered frames at 25 frames per second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(clip.codec, rate=25, options=clip.options)
        stream.thread_count = 1  # the same bytes every time
        stream.height, stream.width, stream.pix_fmt = _ROWS * _BLOCK_PX, _COLUMNS * _BLOCK_PX, "yuv420p"
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(index), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def damage(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """The content with one random damage, and the kind of it."""
    size = len(content)
    at, length = int(rng.integers(size)), int(2 ** rng.uniform(0, 11))
    end = min(size, at + length)
    block = content[at:end]
    kinds = {
        "zeros": content[:at] + bytes(len(block)) + content[end:],
        "noise": content[:at] + rng.bytes(len(block)) + content[end:],
        "cut": content[: max(at, size // 10)],
        "removed": content[:at] + content[end:],
        "repeated": content[:at] + block + content[at:],
        "flipped": _with_flipped_bits(content, rng),
    }
    kind = str(rng.choice(list(kinds)))
    return kind, kinds[kind]


def _with_flipped_bits(content: bytes, rng: np.random.Generator) -> bytes:
    values = np.frombuffer(content, np.uint8).copy()
    places = rng.integers(len(values), size=int(rng.integers(1, 21)))
    values[places] ^= np.uint8(1) << rng.integers(8, size=len(places)).astype(np.uint8)
    return values.tobytes()


def count_decodable(path: Path) -> int:
    """How many frames FFmpeg decodes: one thread, packet by packet, past errors, as its command line does."""
    try:
        container = av.open(f"file:{path}", metadata_errors="replace")
    except (av.error.FFmpegError, ValueError):
        return 0
    frames = 0
    with closing(container):
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            return 0
        stream.codec_context.thread_count = 1
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError:
                packet = None
            try:
                frames += len(stream.codec_context.decode(packet if packet is not None and packet.size else None))
            except av.error.FFmpegError:
                pass
            if packet is None or not packet.size:
                return frames


def examine(path: Path) -> Outcome:
    """Read one file with decode and compare."""
    decodable = count_decodable(path)
    config = DecodeConfig()
    frames, misplaced = 0, 0
    decoder: Decoder | None = None
    try:
        decoder = Decoder(config, probe(path, config))
        for frame in decoder():
            frames += 1
            shown = shown_index(frame.image) if frame.image.shape[:2] == (48, 64) else None
            misplaced += shown is not None and shown != frame.index
    except LiftstreamError as error:
        return Outcome(path.name, decodable, frames, "refused", said=True, line=str(error))
    except Exception as error:  # noqa: BLE001 - what escapes is what is being looked for
        return Outcome(path.name, decodable, frames, type(error).__name__, line=str(error))
    found = decoder.damage
    return Outcome(
        path.name,
        decodable,
        frames,
        "done" if found is None else "damaged",
        said=found is not None or bool(decoder.warnings),
        misplaced=misplaced,
        missing=0 if found is None else found.frames_missing,
        line="; ".join(([] if found is None else [found.summary()]) + decoder.warnings),
    )


def examine_all(paths: Iterable[Path], time_limit: float = TIME_LIMIT_SECONDS) -> Iterator[Outcome]:
    """Outcomes of files, read one by one in a worker process that is replaced when it hangs or dies."""
    worker = _Worker()
    try:
        for path in paths:
            outcome = worker.examine(path, time_limit)
            if outcome.status in ("hung", "crashed"):
                worker.stop()
                worker = _Worker()
            yield outcome
    finally:
        worker.stop()


class _Worker:
    """A process that examines one file after the other."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._connection.recv()  # it has started

    def examine(self, path: Path, time_limit: float) -> Outcome:
        self._connection.send(path)
        try:
            if not self._connection.poll(time_limit):
                return Outcome(path.name, 0, 0, "hung")
            outcome: Outcome = self._connection.recv()
        except (EOFError, OSError):
            return Outcome(path.name, 0, 0, "crashed")
        return outcome

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()


def _serve(connection: Connection) -> None:
    connection.send(os.getpid())
    while True:
        try:
            path = connection.recv()
        except EOFError:
            return
        connection.send(examine(path))


def damaged_files(folder: Path, clips: Iterable[Clip], files_per_clip: int, seed: int) -> Iterator[Path]:
    """Damaged copies of newly made clips, written to ``folder``."""
    for clip in clips:
        content = make_clip(folder / f"whole.{clip.suffix}", clip).read_bytes()
        rng = np.random.default_rng([seed, *clip.suffix.encode()])
        for number in range(files_per_clip):
            kind, damaged = damage(content, rng)
            path = folder / f"{kind}_{number:03d}.{clip.suffix}"
            path.write_bytes(damaged)
            yield path


def outcome_table(outcomes: Iterable[Outcome]) -> list[dict[str, int | str]]:
    """One row per container: files by status, frames, and what must be zero."""
    rows: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        row = rows.setdefault(outcome.name.rpartition(".")[2], Counter())
        known = outcome.status in ("done", "damaged", "refused")
        row.update(
            {
                "files": 1,
                outcome.status if known else "failed": 1,
                "decodable": outcome.decodable,
                "frames": outcome.frames,
                "reported missing": outcome.missing,
                "lost in silence": outcome.lost_in_silence,
                "given up": outcome.given_up,
                "misplaced": outcome.misplaced,
            }
        )
    return [{"container": name, **{column: row[column] for column in COLUMNS[1:]}} for name, row in rows.items()]


COLUMNS = (
    "container", "files", "done", "damaged", "refused", "failed", "decodable", "frames", "reported missing",
    "lost in silence", "given up", "misplaced",
)  # fmt: skip


def bench_fuzz(
    files: Annotated[int, typer.Option(min=1, help="Damaged files per container.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the damage.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for all outcomes.")] = None,
) -> None:
    """Damaged videos in several containers through decode: what comes out, and what is lost."""
    with TemporaryDirectory() as folder:
        outcomes = list(examine_all(damaged_files(Path(folder), CLIPS, files, seed)))
    table = Table(*COLUMNS)
    for row in outcome_table(outcomes):
        table.add_row(*(str(row[column]) for column in COLUMNS))
    Console(width=160).print(table)
    if output is not None:
        rows = [{name: getattr(outcome, name) for name in Outcome.__slots__} for outcome in outcomes]
        write_json_whole(output, {"seed": seed, "files_per_container": files, "outcomes": rows})
