"""One track and one frame's boxes, as :mod:`stages.track.tracks` keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.core.records import Detections, Track
from stages.track.gallery import Gallery
from stages.track.kalman import MotionState


@dataclass(slots=True)
class Entry:
    """One track. ``motion`` holds one filter, predicted to the time of the last step."""

    track_id: int
    category: str
    state: Literal["tentative", "confirmed", "lost"]
    motion: MotionState
    gallery: Gallery
    summary: npt.NDArray[np.float32] | None
    score: float
    seen_seconds: float
    seen_xyxy: npt.NDArray[np.float32]
    hits: int = 1
    age: int = 0
    missed: int = 0
    innovation: npt.NDArray[np.float64] | None = None


class FrameBoxes:
    """The boxes of one frame and what is known of them."""

    def __init__(
        self,
        found: Detections,
        descriptors: npt.NDArray[np.float32] | None,
        summary: npt.NDArray[np.float32] | None,
        claims: npt.NDArray[np.int64] | None,
    ) -> None:
        self.found = found
        self.descriptors = descriptors
        self.summary = summary
        self.claims = np.zeros(len(found), np.int64) if claims is None else claims

    def take(self, boxes: list[int]) -> npt.NDArray[np.float32] | None:
        """Descriptors of some of the boxes, None without descriptors."""
        return None if self.descriptors is None else self.descriptors[boxes]


def show(entry: Entry, xyxy: npt.NDArray[np.floating], confidence: float = 1.0) -> Track:
    """The track as it leaves the stage, with its box in this frame."""
    left, top, right, bottom = (float(value) for value in xyxy)
    return Track(
        track_id=entry.track_id,
        xyxy=(left, top, right, bottom),
        score=entry.score,
        category=entry.category,
        embedding=entry.summary,
        age=entry.age,
        time_since_update=max(entry.missed, 0),
        confidence=confidence,
    )
