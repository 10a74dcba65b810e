"""Decode: a video file or a folder of images to frames with exact presentation times."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.core.config import StrictModel
from pipeline.core.errors import InputError, MediaError
from pipeline.core.records import Frame, VideoInfo
from pipeline.formats.image_folder import probe_folder, read_folder
from pipeline.formats.video import READERS, ReadState, first_frame_index, probe_video


class DecodeConfig(StrictModel):
    """How and how much of the input is read; every field is explained in ``configs/default.yaml``."""

    backend: Literal["pyav", "decord"] = "pyav"
    start_seconds: float = Field(0.0, ge=0)
    end_seconds: float | None = Field(None, gt=0)
    every: int = Field(1, ge=1)
    image_frame_rate: float = Field(24.0, gt=0)

    @model_validator(mode="after")
    def _end_after_start(self) -> DecodeConfig:
        if self.end_seconds is not None and self.end_seconds <= self.start_seconds:
            raise ValueError(f"end_seconds {self.end_seconds} must lie after start_seconds {self.start_seconds}")
        return self


def probe(source: Path, config: DecodeConfig) -> VideoInfo:
    """Facts about an input before anything is decoded.

    Raises:
        MediaError: The path is missing, is no video and no folder of images, or holds no frame.
    """
    if not source.exists():
        raise MediaError(f"{source}: no such file or folder")
    if source.is_dir():
        return probe_folder(source, Fraction(config.image_frame_rate).limit_denominator(100_000))
    return probe_video(source)


class Decoder:
    """Reads one input once. ``broken`` says afterwards where it broke off, None where it was whole.

    Args:
        config: What to read.
        info: From :func:`probe`.
    """

    def __init__(self, config: DecodeConfig, info: VideoInfo) -> None:
        self.config = config
        self.info = info
        self._state = ReadState()

    @property
    def broken(self) -> str | None:
        """One line that says where the input broke off, or None."""
        return self._state.broken

    @property
    def warnings(self) -> list[str]:
        """What was odd about the input."""
        return list(self._state.warnings or [])

    def expected_frames(self) -> int | None:
        """How many frames will come, as far as the container tells; for progress bars only."""
        if self.info.num_frames is None:
            return None
        rate = self.info.frame_rate
        last = self.info.num_frames
        if self.config.end_seconds is not None:
            last = min(last, -int(-self.config.end_seconds * rate // 1))
        first = -int(-self.config.start_seconds * rate // 1)
        return max(0, -(-(last - first) // self.config.every))

    def first_index(self) -> int:
        """Index of the first frame that will come."""
        start = self.config.start_seconds
        if self.info.path.is_dir():
            return -int(-start * self.info.frame_rate // 1)
        return first_frame_index(self.info, start)

    def __call__(self) -> Iterator[Frame]:
        """The frames in order.

        Raises:
            MediaError: No frame lies between start and end, or the file cannot be read at all.
        """
        nothing = True
        for frame in self._read():
            if self.config.end_seconds is not None and frame.pts_seconds >= self.config.end_seconds:
                break
            nothing = False
            yield frame
        if nothing:
            raise self._no_frames()

    def report(self) -> dict[str, Any]:
        """Facts for ``run.json``."""
        return {"backend": self.config.backend, "broken": self.broken}

    def _read(self) -> Iterator[Frame]:
        start, every = self.config.start_seconds, self.config.every
        if self.info.path.is_dir():
            return read_folder(self.info, start_seconds=start, every=every)
        reader = READERS[self.config.backend]
        return reader(self.info, self._state, start_seconds=start, every=every)

    def _no_frames(self) -> InputError:
        end = "its end" if self.config.end_seconds is None else f"{self.config.end_seconds} s"
        return MediaError(f"{self.info.path}: no frames between {self.config.start_seconds} s and {end}")
