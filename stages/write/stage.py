"""Write: the output folder of a run, every file whole or not at all.

::

    OUT/annotated.mp4      H.264, yuv420p, faststart, the input's size (made even) and timing
        masks/00000.png    objects as indexed PNG, DAVIS palette, the frame's size
        parts/00000.png    parts as indexed PNG
        tracks.txt         MOTChallenge text: frame, id, left, top, width, height, score, -1, -1, -1

Files carry the frame's index, or for a folder of images the image's own name. ``run.json`` is written by the
flow, which knows the whole run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import av
import numpy as np
import numpy.typing as npt
from pydantic import Field

from pipeline.core.config import StrictModel
from pipeline.core.errors import OutputError
from pipeline.core.records import Packet, VideoInfo
from pipeline.formats.mot import format_track
from pipeline.formats.palette import write_indexed_png

_FOLDERS = ("masks", "parts")
_FILES = ("annotated.mp4", "tracks.txt", "run.json")
_TIME_BASE = Fraction(1, 90_000)


class WriteConfig(StrictModel):
    """What is written; every field is explained in ``configs/default.yaml``."""

    enabled: bool = True
    annotated_video: bool = True
    masks: bool = True
    parts: bool = True
    tracks: bool = True
    crf: int = Field(20, ge=0, le=51)
    encoder_preset: str = Field(
        "veryfast", pattern="^(ultra|super|very)?fast(er)?$|^medium$|^slow(er)?$|^veryslow$"
    )


def prepare_output(folder: Path, *, overwrite: bool) -> None:
    """Make the output folder, or clear an earlier run's files from it.

    Raises:
        OutputError: It exists and ``overwrite`` is off, or it cannot be made.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder}: is a file, not a folder; choose another --output")
        if folder.exists() and any(folder.iterdir()):
            if not overwrite:
                raise OutputError(f"{folder}: exists already; choose another --output or add --overwrite")
            remove_output(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from error


def remove_output(folder: Path) -> None:
    """Remove what a run writes into ``folder``, and nothing else; the folder too if that leaves it empty."""
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


class Writer:
    """Writes every packet that flows past and passes it on. ``frames_written`` counts them."""

    def __init__(
        self, config: WriteConfig, folder: Path, info: VideoInfo, *, video_name: str = "annotated.mp4"
    ) -> None:
        self.config = config
        self.video_name = video_name
        self.folder = folder
        self.info = info
        self.frames_written = 0
        self.warnings: list[str] = []

    def __call__(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        """The same packets, after their files are written; closes the files however the run ends."""
        with _AtomicText(self.folder / "tracks.txt") as tracks, _Video(self._video_path(), self) as video:
            for packet in packets:
                self._write_masks(packet)
                if self.config.annotated_video and packet.annotated is not None:
                    video.write(packet.annotated, packet.frame.pts_seconds)
                if self.config.tracks and packet.tracks is not None:
                    tracks.write(_mot_lines(packet))
                self.frames_written += 1
                yield packet

    def paths(self) -> list[Path]:
        """What was written, folders for the files of every frame."""
        names = (*_FILES[:1], *_FOLDERS, *_FILES[1:])
        return [self.folder / name for name in names if (self.folder / name).exists()]

    def report(self) -> dict[str, Any]:
        """Facts for ``run.json``."""
        return {"frames_written": self.frames_written}

    def _video_path(self) -> Path:
        return self.folder / self.video_name

    def _write_masks(self, packet: Packet) -> None:
        name = self.info.frame_names[packet.index] if self.info.frame_names else f"{packet.index:05d}"
        if self.config.masks and packet.labels is not None:
            self._write_png("masks", name, packet.labels.index_mask)
        if self.config.parts and packet.parts is not None:
            self._write_png("parts", name, packet.parts.index_mask)

    def _write_png(self, kind: str, name: str, mask: npt.NDArray[np.uint8]) -> None:
        folder = self.folder / kind
        folder.mkdir(exist_ok=True)
        write_indexed_png(folder / f"{name}.png", mask)


def _mot_lines(packet: Packet) -> str:
    """The boxes seen in this frame as MOTChallenge lines."""
    seen = [track for track in packet.tracks or () if track.time_since_update == 0]
    return "".join(f"{format_track(packet.index, track)}\n" for track in seen)


class _AtomicText:
    """A text file that appears under its name only when it is closed; nothing written means no file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._file: TextIO | None = None

    def write(self, text: str) -> None:
        if self._file is None:
            self._file = self._partial.open("w", encoding="utf-8")
        self._file.write(text)

    def __enter__(self) -> _AtomicText:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            os.replace(self._partial, self._path)


class _Video:
    """An H.264 file that is closed, and so playable, however the run ends; opened with its first picture."""

    def __init__(self, path: Path, writer: Writer) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._rate = writer.info.frame_rate
        self._config = writer.config
        self._container: Any = None
        self._stream: Any = None
        self._last_pts = -1

    def write(self, image: npt.NDArray[np.uint8], pts_seconds: float) -> None:
        """Append one picture, uint8 ``(H, W, 3)`` RGB."""
        image = _even(image)
        if self._container is None:
            self._open(image.shape[1], image.shape[0])
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        # Presentation times must rise: two frames of the same time would end the encoder.
        self._last_pts = max(round(pts_seconds / _TIME_BASE), self._last_pts + 1)
        frame.pts = self._last_pts
        frame.time_base = _TIME_BASE
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> _Video:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._container is None:
            return
        try:
            self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()
        os.replace(self._partial, self._path)

    def _open(self, width: int, height: int) -> None:
        self._container = av.open(str(self._partial), "w", format="mp4", options={"movflags": "+faststart"})
        options = {"crf": str(self._config.crf), "preset": self._config.encoder_preset}
        self._stream = self._container.add_stream("libx264", rate=self._rate, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = _TIME_BASE
        self._stream.time_base = _TIME_BASE


def _even(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Repeat the last row or column where a side is odd: 4:2:0 video needs even sides."""
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(image)
