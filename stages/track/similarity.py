"""Similarity of tracks and boxes from appearance and overlap, and which boxes each track is compared with.

Sources: overlap and appearance in one cost as in BoT-SORT (Aharon et al. 2022, section 3.3,
https://arxiv.org/abs/2206.14651).

Differs from the reference: cosines are rescaled by the typical cosine of *different* objects in this video,
measured between the boxes of one frame, so that one threshold fits facets and backbones whose cosines lie on
different scales.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import box_iou
from stages.track.association import FORBIDDEN, same_category, widen
from stages.track.config import AssociationConfig
from stages.track.gallery import appearance
from stages.track.track_state import FrameBoxes, TrackState

_APART_IOU = 0.1
"""Boxes of one frame that overlap by less show different objects."""
_DIFFERENT_RATE = 0.1
"""Share by which one frame moves the running cosine of different objects."""


class Similarity:
    """Compares tracks with boxes.

    Args:
        config: The weights of appearance and overlap.

    Attributes:
        config: The same.
        different_cosine: Typical cosine of different objects in this video, a running median.
    """

    def __init__(self, config: AssociationConfig) -> None:
        self.config = config
        self.different_cosine = config.different_cosine

    def observe(self, frame: FrameBoxes) -> None:
        """Update :attr:`different_cosine` from the boxes of one frame that hardly overlap."""
        if frame.descriptors is None or len(frame.found) < 2:
            return
        apart = np.triu(box_iou(frame.found.xyxy, frame.found.xyxy) < _APART_IOU, 1)
        apart &= (frame.found.scores >= self.config.high_score)[:, None]
        if apart.any():
            typical = float(np.median((frame.descriptors @ frame.descriptors.T)[apart]))
            self.different_cosine += _DIFFERENT_RATE * (typical - self.different_cosine)

    def appearance(
        self, tracks: Sequence[TrackState], descriptors: npt.NDArray[np.float32], seconds: float
    ) -> npt.NDArray[np.float64]:
        """Appearance similarity ``(N, M)`` in [0, 1]: 0 for different objects, 1 for a perfect match."""
        galleries = [track.gallery for track in tracks]
        cosines = appearance(galleries, descriptors, seconds, self.config.forgetting)
        different = self.different_cosine
        scaled: npt.NDArray[np.float64] = ((cosines - different) / (1 - different)).clip(0, 1)
        return scaled

    def by_appearance(
        self, tracks: Sequence[TrackState], boxes: list[int], frame: FrameBoxes, seconds: float
    ) -> npt.NDArray[np.float64]:
        """Appearance similarity ``(N, M)``, :data:`FORBIDDEN` where the categories differ.

        Raises:
            ValueError: The frame has no descriptors.
        """
        descriptors = frame.descriptors_of(boxes)
        if descriptors is None:
            raise ValueError("boxes without descriptors cannot be matched by appearance")
        allowed = same_category([t.category for t in tracks], [frame.found.categories[n] for n in boxes])
        return np.where(allowed, self.appearance(tracks, descriptors, seconds), FORBIDDEN)

    def by_place_and_appearance(
        self, tracks: Sequence[TrackState], boxes: list[int], frame: FrameBoxes, seconds: float
    ) -> npt.NDArray[np.float64]:
        """Weighted sum of overlap and appearance ``(N, M)`` in [0, 1]; overlap alone without descriptors.

        :data:`FORBIDDEN` where the widened boxes do not overlap or the categories differ.
        """
        weight = self.config.appearance_weight
        overlap = self._overlap(tracks, frame.found.xyxy[boxes])
        allowed = same_category([t.category for t in tracks], [frame.found.categories[n] for n in boxes])
        allowed &= overlap > 0
        descriptors = frame.descriptors_of(boxes)
        total = overlap
        if descriptors is not None:
            total = weight * self.appearance(tracks, descriptors, seconds) + (1 - weight) * overlap
        return np.where(allowed, total, FORBIDDEN)

    def _overlap(self, tracks: Sequence[TrackState], xyxy: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """IoU of the widened boxes: at the predicted or the last place, for a velocity is a guess at low rates."""
        share = self.config.widen
        predicted = np.concatenate([track.motion.xyxy for track in tracks])
        last_seen = np.stack([track.seen_xyxy for track in tracks])
        seen = widen(xyxy, share)
        overlap: npt.NDArray[np.float64] = np.maximum(
            box_iou(widen(predicted, share), seen), box_iou(widen(last_seen, share), seen)
        )
        return overlap
