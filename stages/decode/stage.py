"""Decode: a video file or a folder of images as frames with exact presentation times."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipeline.core.errors import InputError, MediaError
from pipeline.core.records import Frame, VideoInfo
from pipeline.core.state import State
from pipeline.formats.image_folder import probe_folder
from pipeline.formats.video import to_rgb
from stages.decode.config import DecodeConfig
from stages.decode.damage import Damage, DamageLog, Gap
from stages.decode.decord_reader import read_with_decord
from stages.decode.images import read_images
from stages.decode.indexed_frame import IndexedFrame
from stages.decode.probe import probe_video, start_is_damaged
from stages.decode.torchcodec_reader import read_with_torchcodec, require_torchcodec
from stages.decode.video import VideoReader


@dataclass(frozen=True, slots=True)
class _Place:
    """A frame of the source before its pixels are converted; without pixels it is the end of the input."""

    index: int
    seconds: float
    missing: int = 0
    duration_seconds: float | None = None
    raw: Any = None
    image: npt.NDArray[np.uint8] | None = None
    on_device: Tensor | None = None

    @property
    def has_pixels(self) -> bool:
        """Whether it is a frame, and not the end of the input."""
        return self.raw is not None or self.image is not None


def probe(source: Path, config: DecodeConfig) -> VideoInfo:
    """Facts about an input, known before the run.

    Raises:
        MediaError: The path is missing, is neither a video nor a folder of images, or has no frames.
    """
    if not source.exists():
        raise MediaError(f"{source}: no such file or folder")
    if source.is_dir():
        return probe_folder(source, Fraction(config.image_frame_rate).limit_denominator(100_000))
    return probe_video(source, config.stream)


class Decoder:
    """The frames of one input, in order, past everything that cannot be decoded.

    Invariant: ``current_index`` is the index of the last frame that was yielded, and :meth:`state` describes the
    position after it. Calling the decoder again goes on after that frame; :meth:`reset` goes back to the start.

    Args:
        config: What to read.
        info: From :func:`probe`.

    Raises:
        ConfigError: The backend cannot be used here.
    """

    def __init__(self, config: DecodeConfig, info: VideoInfo) -> None:
        if config.backend == "torchcodec":
            require_torchcodec(config.device)
        self.config = config
        self.info = info
        self._video: VideoReader | None = None
        self.reset()

    def reset(self) -> None:
        """Go back to the first frame."""
        if self._video is not None:
            self._video.close()
        self.current_index: int | None = None
        self._current_seconds = 0.0
        self._first_index: int | None = None
        self._log = DamageLog()
        self._video = None
        if not self.info.path.is_dir() and self.config.backend == "pyav":
            self._video = VideoReader(self.info, self._log.warn)

    def state(self) -> State:
        """The position after the last frame that was yielded."""
        return {
            "current_index": self.current_index,
            "current_seconds": self._current_seconds,
            "first_index": self._first_index,
            "log": self._log.state(),
            "video": None if self._video is None else self._video.state(),
        }

    def restore(self, state: State) -> None:
        """Go to the position of an earlier :meth:`state`: the next frame is the one that followed then."""
        self.reset()
        self.current_index = state["current_index"]
        self._current_seconds = state["current_seconds"]
        self._first_index = state["first_index"]
        if self._video is not None:
            self._video.restore(state["video"])
        self._log.restore(state["log"])

    @property
    def damage(self) -> Damage | None:
        """What could not be decoded so far; None if nothing is missing."""
        return self._log.damage(0 if self.current_index is None else self.current_index + 1)

    @property
    def broken(self) -> str | None:
        """One line that names the input and what is missing, or None."""
        return None if self.damage is None else f"{self.info.path}: {self.damage.summary()}"

    @property
    def warnings(self) -> list[str]:
        """What was unusual about the input, one line each."""
        lines = list(self._log.warnings)
        concealed = 0 if self._video is None else self._video.frames_concealed
        if concealed:
            lines.append(f"{self.info.path}: {concealed} frames are damaged; FFmpeg filled in what is missing")
        return lines

    def expected_frames(self) -> int | None:
        """Number of frames to expect according to the container, for progress bars; None if unknown."""
        if self.info.num_frames is None:
            return None
        rate = float(self.info.frame_rate)
        last = self.info.num_frames
        if self.config.end_seconds is not None:
            last = min(last, math.ceil(self.config.end_seconds * rate))
        first = math.ceil(self.config.start_seconds * rate)
        return max(0, -(-(last - first) // self.config.every))

    def first_index(self) -> int:
        """Index of the first frame of the range that is read."""
        start = self.config.start_seconds
        if self.info.path.is_dir():
            return math.ceil(start * self.info.frame_rate)
        return VideoReader(self.info).first_index(start)

    def __call__(self) -> Iterator[Frame]:
        """The frames in order, from the current position.

        Raises:
            MediaError: No frame lies between start and end, or the file cannot be read at all.
        """
        for place in self._places():
            past_end = self.config.end_seconds is not None and place.seconds >= self.config.end_seconds
            missing = self._missing_before_end(place) if past_end else place.missing
            if missing and not self._go_on_past(place, missing):
                break
            if past_end:
                break
            if place.has_pixels and self._take(place):
                yield self._frame(place)
        if self.current_index is None:
            raise self._no_frames()

    def report(self) -> dict[str, Any]:
        """Facts for ``run.json``; at most :data:`stages.decode.damage.MAX_GAPS` gaps."""
        damage = self.damage
        return {
            "backend": self.config.backend,
            "broken": self.broken,
            "frames_missing": 0 if damage is None else damage.frames_missing,
            "frames_concealed": 0 if self._video is None else self._video.frames_concealed,
            "num_gaps": 0 if damage is None else damage.num_gaps,
            "gaps": [
                {
                    "from": gap.first_index,
                    "to": gap.last_index,
                    "frames": gap.frames,
                    "start_seconds": gap.start_seconds,
                    "end_seconds": gap.end_seconds,
                }
                for gap in (() if damage is None else damage.gaps)
            ],
        }

    def _places(self) -> Iterator[_Place]:
        """The frames from the current position on, and what is missing after the last one."""
        if self.info.path.is_dir():
            return self._image_places()
        return self._indexed_places() if self._video is None else self._video_places(self._video)

    def _video_places(self, video: VideoReader) -> Iterator[_Place]:
        with closing(video):
            if start_is_damaged(self.info.path):
                self._log.warn(f"{self.info.path}: the start of the file is damaged; frames may be missing there")
            for found in video.frames(self.config.start_seconds):
                duration = float(found.raw.duration * self.info.time_base) if found.raw.duration else None
                yield _Place(found.index, found.seconds, found.missing, duration, raw=found.raw)
            missing, early = video.missing_at_end()
            if early:
                self._log.ends_early = f"breaks off after frame {video.last_index}"
            total = video.last_index + 1 + missing
            promised = self.info.num_frames or 0
            if total < promised:
                self._log.warn(f"{self.info.path}: the header says {promised} frames, {total} were found")
            yield _Place(total, math.inf, missing)

    def _image_places(self) -> Iterator[_Place]:
        rate, missing = self.info.frame_rate, 0
        following = self.first_index() if self.current_index is None else self.current_index + 1
        for read in read_images(self.info, following):
            following = read.index + 1
            if read.image is None:
                self._log.warn(read.problem)
                missing += 1
                continue
            yield _Place(read.index, float(read.index / rate), missing, float(1 / rate), image=read.image)
            missing = 0
        yield _Place(following, float(following / rate), missing)

    def _indexed_places(self) -> Iterator[_Place]:
        following = 0 if self.current_index is None else self.current_index + 1
        for read in self._read_by_index(following):
            if read.image is None:
                end = max(read.index + 1, self.info.num_frames or 0)
                self._log.ends_early = f"breaks off after frame {read.index - 1}"
                yield _Place(end, math.inf, end - read.index)
            else:
                yield _Place(
                    read.index,
                    read.seconds,
                    duration_seconds=read.duration_seconds,
                    image=read.image,
                    on_device=read.on_device,
                )

    def _read_by_index(self, first_index: int) -> Iterator[IndexedFrame]:
        config, start = self.config, self.config.start_seconds
        if config.backend == "decord":
            return read_with_decord(self.info, first_index, start, self._log.warn)
        return read_with_torchcodec(self.info, first_index, start, self._log.warn, config.device)

    def _missing_before_end(self, place: _Place) -> int:
        """How many of the frames missing before ``place`` lie before ``end_seconds``."""
        assert self.config.end_seconds is not None
        frames = (self.config.end_seconds - self._current_seconds) * float(self.info.frame_rate)
        return max(0, min(place.missing, math.ceil(frames - 1e-6) - 1))

    def _go_on_past(self, place: _Place, missing: int) -> bool:
        """Record a gap; False if reading stops there."""
        first = place.index - place.missing
        end = place.seconds if place.has_pixels and missing == place.missing else None
        self._log.add(Gap(first, first + missing - 1, self._current_seconds, end))
        self._log.stopped = self.config.on_damage == "stop"
        return not self._log.stopped

    def _take(self, place: _Place) -> bool:
        """Go on to a frame; whether it is one of every N."""
        if self._first_index is None:
            self._first_index = place.index - place.missing
        self._current_seconds = place.seconds
        wanted = (place.index - self._first_index) % self.config.every == 0
        if wanted:
            self.current_index = place.index
        return wanted

    def _frame(self, place: _Place) -> Frame:
        image = place.image if place.raw is None else to_rgb(place.raw, self.info, self._log.warn)
        assert image is not None
        return Frame(image, place.index, place.seconds, place.duration_seconds, place.on_device)

    def _no_frames(self) -> InputError:
        end = "its end" if self.config.end_seconds is None else f"{self.config.end_seconds} s"
        return MediaError(f"{self.info.path}: no frames between {self.config.start_seconds} s and {end}")
