"""Quality of parts and foreground: J_m and P_m of co-segmentation, and the consistency of parts over time.

Amir et al. 2021, section 5.2, report J_m (intersection over union of the foreground) and P_m ("precision"), which
in the co-segmentation literature is the share of all pixels labeled right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.evaluation.davis_metrics import region_similarity

BoolMask = npt.NDArray[np.bool_]
IndexMask = npt.NDArray[np.uint8]

_CONSISTENT_PX = 1.0


def pixel_precision(prediction: BoolMask, truth: BoolMask) -> float:
    """Share of all pixels labeled right, foreground and background alike.

    >>> pixel_precision(np.array([True, True, False, False]), np.array([True, False, False, False]))
    0.75
    """
    return float((prediction == truth).mean())


def cosegmentation_scores(predictions: Sequence[BoolMask], truths: Sequence[BoolMask]) -> tuple[float, float]:
    """J_m and P_m of one set of images: means over its images.

    Raises:
        ValueError: The sets differ in length or are empty.
    """
    if not predictions or len(predictions) != len(truths):
        raise ValueError(f"{len(predictions)} masks for {len(truths)} annotations")
    pairs = list(zip(predictions, truths, strict=True))
    jaccard = [region_similarity(prediction, truth) for prediction, truth in pairs]
    precision = [pixel_precision(prediction, truth) for prediction, truth in pairs]
    return float(np.mean(jaccard)), float(np.mean(precision))


@dataclass(frozen=True, slots=True)
class Consistency:
    """Pixels that could be followed by optical flow, and how many kept their part.

    Attributes:
        followed: Pixels inside the object whose flow agrees forwards and backwards.
        kept: Of them, those with the same part number (background counts as one) in the next frame.
    """

    followed: int = 0
    kept: int = 0

    def __add__(self, other: Consistency) -> Consistency:
        return Consistency(self.followed + other.followed, self.kept + other.kept)

    @property
    def share(self) -> float:
        """``kept / followed``; 1 where nothing could be followed."""
        return self.kept / self.followed if self.followed else 1.0


def part_consistency(
    images: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]],
    parts: tuple[IndexMask, IndexMask],
    inside: BoolMask,
) -> Consistency:
    """Share of pixels that keep their part from one frame to the next, followed by optical flow.

    The flow is DIS (Kroeger et al. 2016) in both directions. A pixel is followed when going there and back ends
    within a pixel of the start.

    Args:
        images: The two frames, uint8 ``(H, W, 3)`` RGB.
        parts: Their part numbers, uint8 ``(H, W)``.
        inside: bool ``(H, W)``, the true object in the first frame.
    """
    first, second = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images)
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    forward, backward = flow.calc(first, second, None), flow.calc(second, first, None)
    height, width = inside.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    to_x, to_y = x + forward[..., 0], y + forward[..., 1]
    returned = cv2.remap(backward, to_x, to_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=1e6)
    consistent = np.linalg.norm(forward + returned, axis=-1) < _CONSISTENT_PX
    column, row = np.rint(to_x).astype(int), np.rint(to_y).astype(int)
    followed = inside & consistent & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    kept = parts[0][followed] == parts[1][row[followed], column[followed]]
    return Consistency(int(followed.sum()), int(kept.sum()))
