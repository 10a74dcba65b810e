"""Region similarity J and boundary measure F of masks, and their statistics over a sequence.

Perazzi et al., A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation, CVPR 2016, section
4; Pont-Tuset et al., The 2017 DAVIS Challenge. The details below (which pixels are a boundary, empty masks,
the bins of the decay) are those of the official toolkits, whose numbers these functions reproduce.

Differs from the reference: bins are indexed with integers (the toolkit casts to uint8, which wraps past 256
frames), and results are never read back from an earlier file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

BoolMask = npt.NDArray[np.bool_]
BOUND_TH = 0.008
"""Tolerance of the boundary measure as a share of the image's diagonal."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """A measure over frames: mean, recall (share above 0.5), decay (first quarter less last quarter)."""

    mean: float
    recall: float
    decay: float

    def as_dict(self) -> dict[str, float]:
        """The three numbers by name."""
        return {"mean": self.mean, "recall": self.recall, "decay": self.decay}


def region_similarity(prediction: BoolMask, truth: BoolMask, void: BoolMask | None = None) -> float:
    """J: intersection over union of two masks; 1 where both are empty.

    Args:
        prediction: bool ``(H, W)``.
        truth: bool ``(H, W)``.
        void: bool ``(H, W)``, pixels that count for neither.

    >>> region_similarity(np.array([[True, True]]), np.array([[True, False]]))
    0.5
    """
    if void is not None:
        prediction, truth = prediction & ~void, truth & ~void
    union = int(np.count_nonzero(prediction | truth))
    return int(np.count_nonzero(prediction & truth)) / union if union else 1.0


def boundary_map(mask: BoolMask) -> BoolMask:
    """The boundary pixels of a mask: those that differ from their right, lower or lower right neighbor.

    Pixels of the last row have only a right neighbor, those of the last column only a lower one, the corner
    pixel none: an object that touches the lower or right border has no boundary along it.

    >>> boundary_map(np.array([[0, 1, 1], [0, 1, 1]], bool)).astype(int).tolist()
    [[1, 0, 0], [1, 0, 0]]
    """
    boundary = np.zeros_like(mask)
    boundary[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    boundary[:-1, :] |= mask[:-1, :] != mask[1:, :]
    boundary[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return boundary


def boundary_measure(
    prediction: BoolMask, truth: BoolMask, void: BoolMask | None = None, *, bound_th: float = BOUND_TH
) -> float:
    """F: harmonic mean of the precision and recall of boundary pixels, within a tolerance.

    Args:
        prediction: bool ``(H, W)``.
        truth: bool ``(H, W)``.
        void: bool ``(H, W)``, pixels that count for neither.
        bound_th: Tolerance as a share of the diagonal (rounded up to pixels), or in pixels from 1 on.
    """
    if void is not None:
        prediction, truth = prediction & ~void, truth & ~void
    radius = bound_th if bound_th >= 1 else math.ceil(bound_th * math.hypot(*prediction.shape))
    found, wanted = boundary_map(prediction), boundary_map(truth)
    num_found, num_wanted = int(np.count_nonzero(found)), int(np.count_nonzero(wanted))
    if not num_found or not num_wanted:
        return 1.0 if num_found == num_wanted else 0.0
    found, wanted = _crop(found, wanted)
    precision = int(np.count_nonzero(found & _dilate(wanted, radius))) / num_found
    recall = int(np.count_nonzero(wanted & _dilate(found, radius))) / num_wanted
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def statistics(values: npt.NDArray[np.float64]) -> Statistics:
    """Mean, recall and decay of a measure over the frames of one object.

    Args:
        values: float ``(frames,)``; NaN frames count for nothing. At least one frame.
    """
    values = np.asarray(values, dtype=np.float64)
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(np.int64) - 1
    first, last = values[edges[0] : edges[1] + 1], values[edges[3] : edges[4] + 1]
    known = values[~np.isnan(values)]
    if not len(known):
        return Statistics(math.nan, math.nan, math.nan)
    return Statistics(
        mean=float(np.mean(known)),
        # A frame without a value stays in the denominator, as in the toolkit.
        recall=float(np.mean(values > 0.5)),
        decay=_nanmean(first) - _nanmean(last),
    )


def combine(per_object: list[tuple[Statistics, Statistics]]) -> dict[str, Any]:
    """Unweighted mean over objects of their (J, F) statistics, with J&F, the mean of the two means.

    Raises:
        ValueError: No object.
    """
    if not per_object:
        raise ValueError("no object to average over")
    out: dict[str, Any] = {}
    for position, name in ((0, "J"), (1, "F")):
        rows = np.array([[s[position].mean, s[position].recall, s[position].decay] for s in per_object])
        mean, recall, decay = rows.mean(axis=0).tolist()
        out[name] = {"mean": mean, "recall": recall, "decay": decay}
    out["J&F"] = (out["J"]["mean"] + out["F"]["mean"]) / 2
    return out


def _crop(a: BoolMask, b: BoolMask) -> tuple[BoolMask, BoolMask]:
    """Both maps cut to what holds all their pixels: dilation cannot reach anything that counts outside."""
    either = a | b
    rows, columns = np.flatnonzero(either.any(axis=1)), np.flatnonzero(either.any(axis=0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return a[window], b[window]


def _dilate(boundary: BoolMask, radius: float) -> BoolMask:
    reach = math.floor(radius)
    offsets = np.arange(-reach, reach + 1)
    disk = (offsets[:, None] ** 2 + offsets[None, :] ** 2 <= radius**2).astype(np.uint8)
    dilated = cv2.dilate(boundary.astype(np.uint8), disk, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(dilated, dtype=np.bool_)


def _nanmean(values: npt.NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(np.mean(known)) if len(known) else math.nan
