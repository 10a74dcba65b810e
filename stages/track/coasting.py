"""Coasting: which tracks are shown at their predicted place while their detection is missing.

A detector misses an object now and then. For a moment its track is shown where the motion model expects it, but
only while the features *there* are similar to the track's gallery: an object occluded or gone is not shown.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import box_areas, box_intersection
from stages.track.config import AssociationConfig
from stages.track.similarity import Similarity
from stages.track.track_state import TrackState

Describe = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32] | None]
"""From boxes float32 ``(N, 4)`` to their unit descriptors ``(N, D)``, or None without features."""

_MIN_INSIDE = 0.5
"""A predicted box with no more than this share of its area inside the frame is not shown."""


def may_coast(track: TrackState, seconds: float, config: AssociationConfig) -> bool:
    """Whether a confirmed track has been without a detection for at most ``coast_seconds``."""
    unseen = seconds - track.seen_seconds
    return (
        track.status == "confirmed"
        and track.missed > 0
        and track.hits >= config.confirm_hits
        and unseen <= config.coast_seconds + 1e-6
    )


def still_visible(
    tracks: list[TrackState],
    similarity: Similarity,
    seconds: float,
    image_hw: tuple[int, int],
    describe: Describe | None,
) -> list[TrackState]:
    """The tracks whose predicted box lies inside the frame and holds features similar to theirs."""
    if not tracks:
        return []
    boxes = np.concatenate([track.motion.xyxy for track in tracks])
    height, width = image_hw
    keep = box_intersection(boxes, [[0, 0, width, height]])[:, 0] / box_areas(boxes) > _MIN_INSIDE
    descriptors = None if describe is None else describe(boxes.astype(np.float32))
    if descriptors is not None:
        at_own_place = np.diagonal(similarity.appearance(tracks, descriptors, seconds))
        keep &= at_own_place >= similarity.config.coast_similarity
    return [track for track, kept in zip(tracks, keep, strict=True) if kept]
