"""Confidence over time: one strip per object, its worst moments, and the most doubtful frames of a run.

Confidence is what ``objects.csv`` says about a mask; in a run without masks it is the score of a tracked box. The
doubt of a frame is one minus the smallest confidence of what is visible in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.core.colors import OBJECT_COLORS
from pipeline.formats.boxes import BoxTable
from pipeline.formats.run_folder import ObjectTable, RunFolder

FloatArray = npt.NDArray[np.float64]

_WORST_MOMENTS = 3
_SHARE_APART = 1 / 40
"""Moments that are nearer than this share of the video show the same thing; the worse one stands for both."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A frame to look at.

    Attributes:
        frame: Index in the input.
        seconds: Time in the annotated video.
        confidence: The smallest confidence at it.
        object_id: Whose it is.
    """

    frame: int
    seconds: float
    confidence: float
    object_id: int


@dataclass(frozen=True, slots=True)
class Strip:
    """One object over time; only frames in which it is visible.

    Attributes:
        object_id: Its id.
        category: Its category or the name it was given, empty if unknown.
        frames: int64 ``(N,)``, ascending.
        seconds: float64 ``(N,)``, times in the annotated video.
        confidence: float64 ``(N,)`` in [0, 1].
        worst: Its worst moments, the worst first.
    """

    object_id: int
    category: str
    frames: npt.NDArray[np.int64]
    seconds: FloatArray
    confidence: FloatArray
    worst: tuple[Moment, ...]

    @property
    def color(self) -> str:
        """The color that the object has in the annotated video."""
        return hex_color(OBJECT_COLORS[(self.object_id - 1) % 255 + 1])


class Clock:
    """From frame indices to times in the annotated video.

    Args:
        run: The run.
        frames: Indices of its frames, ascending.
    """

    def __init__(self, run: RunFolder, frames: list[int]) -> None:
        seconds = run.video_seconds()
        rate = float(run.frame_rate)
        first = frames[0] if frames else 0
        if len(seconds) != len(frames):
            seconds = [(frame - first) / rate for frame in frames]
        self.frame_seconds = 1 / rate
        self.duration = (seconds[-1] if seconds else 0.0) + self.frame_seconds
        self._seconds = dict(zip(frames, seconds, strict=True))
        self._first = first

    def seconds(self, frame: int) -> float:
        """Time of a frame; that of a frame which was not written is worked out from the frame rate."""
        return self._seconds.get(frame, (frame - self._first) * self.frame_seconds)


def hex_color(rgb: npt.NDArray[np.uint8]) -> str:
    """An RGB color as ``#rrggbb``.

    >>> hex_color(np.array([255, 0, 16], np.uint8))
    '#ff0010'
    """
    return "#" + "".join(f"{int(value):02x}" for value in rgb)


def object_strips(table: ObjectTable, clock: Clock, names: Mapping[int, str] | None = None) -> list[Strip]:
    """The strips of the masks' objects, by id; ``names`` become their categories."""
    names = names or {}
    strips = []
    for object_id in table.ids():
        rows = table.rows_of(object_id)
        rows = rows[table.areas_px[rows] > 0]
        if len(rows):
            category = names.get(object_id, "")
            strips.append(_strip(object_id, category, table.frames[rows], table.confidence[rows], clock))
    return strips


def track_strips(table: BoxTable, clock: Clock) -> list[Strip]:
    """The strips of tracked boxes, by id; scores are cut to [0, 1]."""
    strips = []
    for track_id in np.unique(table.ids).tolist():
        rows = np.flatnonzero(table.ids == track_id)
        rows = rows[np.argsort(table.frames[rows], kind="stable")]
        category = table.categories[int(rows[0])]
        strips.append(_strip(track_id, category, table.frames[rows], table.scores[rows].clip(0, 1), clock))
    return strips


def most_doubtful(strips: list[Strip], count: int, clock: Clock) -> list[Moment]:
    """The frames with the smallest confidence, each for itself, the worst first."""
    worst: dict[int, Moment] = {}
    for strip in strips:
        for frame, confidence in zip(strip.frames.tolist(), strip.confidence.tolist(), strict=True):
            known = worst.get(frame)
            if known is None or confidence < known.confidence:
                worst[frame] = Moment(frame, clock.seconds(frame), confidence, strip.object_id)
    return _apart(list(worst.values()), count, clock.duration * _SHARE_APART)


def mean_doubt(strips: list[Strip]) -> float | None:
    """Mean doubt of the worst tenth of the frames, by which runs are compared; None without any object."""
    worst: dict[int, float] = {}
    for strip in strips:
        for frame, confidence in zip(strip.frames.tolist(), strip.confidence.tolist(), strict=True):
            worst[frame] = min(worst.get(frame, 1.0), confidence)
    if not worst:
        return None
    values = np.sort(np.array(list(worst.values())))
    return float(1 - values[: max(1, len(values) // 10)].mean())


def binned(strip: Strip, clock: Clock, bins: int) -> Mapping[int, float]:
    """The smallest confidence by span of the video, ``bins`` in all; spans without the object are left out."""
    # The middle of a frame, so that rounding does not put two frames into one span of the length of a frame.
    middle = strip.seconds + clock.frame_seconds / 2
    places = (middle / clock.duration * bins).astype(int).clip(0, bins - 1)
    smallest: dict[int, float] = {}
    for place, confidence in zip(places.tolist(), strip.confidence.tolist(), strict=True):
        smallest[place] = min(smallest.get(place, 1.0), confidence)
    return smallest


def _strip(
    object_id: int, category: str, frames: npt.NDArray[np.int64], confidence: FloatArray, clock: Clock
) -> Strip:
    seconds = np.array([clock.seconds(frame) for frame in frames.tolist()])
    moments = [
        Moment(frame, second, value, object_id)
        for frame, second, value in zip(frames.tolist(), seconds.tolist(), confidence.tolist(), strict=True)
    ]
    worst = _apart(moments, _WORST_MOMENTS, clock.duration * _SHARE_APART)
    return Strip(object_id, category, frames, seconds, confidence, tuple(worst))


def _apart(moments: list[Moment], count: int, gap_seconds: float) -> list[Moment]:
    """Up to ``count`` doubtful moments, the worst first, none within ``gap_seconds`` of a worse one."""
    chosen: list[Moment] = []
    for moment in sorted(moments, key=lambda moment: (moment.confidence, moment.frame)):
        if len(chosen) == count or moment.confidence >= 1:
            break
        if all(abs(moment.seconds - other.seconds) >= gap_seconds for other in chosen):
            chosen.append(moment)
    return chosen
