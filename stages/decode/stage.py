"""Decode: a video file or a folder of images as frames with exact presentation times."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.core.errors import InputError, MediaError
from pipeline.core.records import Frame, VideoInfo
from pipeline.core.state import State
from pipeline.formats.image_folder import probe_folder, read_folder
from pipeline.formats.video import READERS, ReadState, first_frame_index, probe_video
from stages.decode.config import DecodeConfig


def probe(source: Path, config: DecodeConfig) -> VideoInfo:
    """Facts about an input, known before the run.

    Raises:
        MediaError: The path is missing, is neither a video nor a folder of images, or has no frames.
    """
    if not source.exists():
        raise MediaError(f"{source}: no such file or folder")
    if source.is_dir():
        return probe_folder(source, Fraction(config.image_frame_rate).limit_denominator(100_000))
    return probe_video(source)


class Decoder:
    """The frames of one input, in order.

    Invariant: ``current_index`` is the index of the last frame that was yielded, and :meth:`state` describes the
    position after it. Calling the decoder again goes on after that frame; :meth:`reset` goes back to the start.

    Args:
        config: What to read.
        info: From :func:`probe`.
    """

    def __init__(self, config: DecodeConfig, info: VideoInfo) -> None:
        self.config = config
        self.info = info
        self.reset()

    def reset(self) -> None:
        """Go back to the first frame."""
        self.current_index: int | None = None
        self._read_state = ReadState()

    def state(self) -> State:
        """The position after the last frame that was yielded."""
        return {
            "current_index": self.current_index,
            "broken": self._read_state.broken,
            "warnings": list(self._read_state.warnings),
        }

    def restore(self, state: State) -> None:
        """Go to the position of an earlier :meth:`state`: the next frame is the one that followed then."""
        self.current_index = state["current_index"]
        self._read_state = ReadState(state["broken"], list(state["warnings"]))

    @property
    def broken(self) -> str | None:
        """One line that says where the input broke off, or None."""
        return self._read_state.broken

    @property
    def warnings(self) -> list[str]:
        """What was unusual about the input, one line each."""
        return list(self._read_state.warnings)

    def expected_frames(self) -> int | None:
        """Number of frames to expect according to the container, for progress bars; None if unknown."""
        if self.info.num_frames is None:
            return None
        rate = self.info.frame_rate
        last = self.info.num_frames
        if self.config.end_seconds is not None:
            last = min(last, -int(-self.config.end_seconds * rate // 1))
        first = -int(-self.config.start_seconds * rate // 1)
        return max(0, -(-(last - first) // self.config.every))

    def first_index(self) -> int:
        """Index of the first frame of the range that is read."""
        start = self.config.start_seconds
        if self.info.path.is_dir():
            return -int(-start * self.info.frame_rate // 1)
        return first_frame_index(self.info, start)

    def __call__(self) -> Iterator[Frame]:
        """The frames in order, from the current position.

        Raises:
            MediaError: No frame lies between start and end, or the file cannot be read at all.
        """
        last_index = self.current_index
        for frame in self._read():
            if last_index is not None and frame.index <= last_index:
                continue
            if self.config.end_seconds is not None and frame.pts_seconds >= self.config.end_seconds:
                break
            self.current_index = frame.index
            yield frame
        if self.current_index is None:
            raise self._no_frames()

    def report(self) -> dict[str, Any]:
        """Facts for ``run.json``."""
        return {"backend": self.config.backend, "broken": self.broken}

    def _read(self) -> Iterator[Frame]:
        start, every = self.config.start_seconds, self.config.every
        if self.info.path.is_dir():
            return read_folder(self.info, start_seconds=start, every=every)
        reader = READERS[self.config.backend]
        return reader(self.info, self._read_state, start_seconds=start, every=every)

    def _no_frames(self) -> InputError:
        end = "its end" if self.config.end_seconds is None else f"{self.config.end_seconds} s"
        return MediaError(f"{self.info.path}: no frames between {self.config.start_seconds} s and {end}")
