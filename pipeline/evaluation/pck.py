"""PCK: the share of key points that land near enough, by the two definitions in use.

* ``image``: Amir et al. 2021, section 5.3: within ``alpha`` times the longer side of the target *image*, the limit
  included.
* ``box``: LiFT (Suri et al., ECCV 2024): nearer than ``alpha`` times the longer side of the target's *bounding
  box*.

The two are not comparable; a result always says which it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Definition = Literal["image", "box"]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PointErrors:
    """Distances of predicted key points of one pair, and what they are measured by.

    Attributes:
        distances_px: float64 ``(M,)`` in the target's pixels.
        image_side_px: Longer side of the target image.
        box_side_px: Longer side of the object's box in it.
    """

    distances_px: FloatArray
    image_side_px: float
    box_side_px: float

    def correct(self, alpha: float, definition: Definition) -> npt.NDArray[np.bool_]:
        """Which points count as found."""
        if definition == "image":
            return np.asarray(self.distances_px <= alpha * self.image_side_px)
        return np.asarray(self.distances_px < alpha * self.box_side_px)


def pck(pairs: Sequence[PointErrors], alpha: float, definition: Definition) -> float:
    """Share of all key points of the pairs that are found; points are pooled, not pairs.

    >>> errors = PointErrors(np.array([1.0, 10.0, 11.0]), image_side_px=100.0, box_side_px=50.0)
    >>> round(pck([errors], 0.1, "image"), 3), round(pck([errors], 0.1, "box"), 3)
    (0.667, 0.333)
    """
    hits = [pair.correct(alpha, definition) for pair in pairs]
    total = sum(len(found) for found in hits)
    return float(sum(int(found.sum()) for found in hits) / total) if total else 0.0


def mean_over_categories(
    categories: Mapping[str, Sequence[PointErrors]], alpha: float, definition: Definition
) -> dict[str, float]:
    """PCK of each category and, under ``mean``, their unweighted mean."""
    scores = {name: pck(pairs, alpha, definition) for name, pairs in sorted(categories.items())}
    return {**scores, "mean": float(np.mean(list(scores.values()))) if scores else 0.0}


def transfer_points(source: Tensor, target: Tensor, points: Tensor, size_px: int) -> Tensor:
    """Where key points of one square image are in another, by LiFT's protocol.

    Descriptors are L2-normalized, interpolated to every pixel (not normalized again), and the pixel of the target
    with the largest dot product wins.

    Args:
        source: ``(C, h, w)`` of the source, a letterboxed square.
        target: The same of the target.
        points: ``(M, 2)`` as (x, y) in pixels of the square.
        size_px: Side of the squares.

    Returns:
        int64 ``(M, 2)``, whole pixels as (x, y).
    """
    size = (size_px, size_px)
    first = F.interpolate(F.normalize(source, dim=0)[None], size=size, mode="bilinear", align_corners=False)[0]
    where = points.long().clamp(0, size_px - 1)
    queries = first[:, where[:, 1], where[:, 0]]
    second = F.normalize(target, dim=0)
    # The interpolation is linear, so similarities may be interpolated instead of the channels: the same values.
    similarity = torch.einsum("cm,chw->mhw", queries, second)
    best = torch.empty(len(points), dtype=torch.long)
    for number, plane in enumerate(similarity):
        best[number] = F.interpolate(plane[None, None], size=size, mode="bilinear", align_corners=False).argmax()
    return torch.stack([best % size_px, best // size_px], dim=-1)


def nearest_cells(source: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    """For cells of one image the most similar cell of another, by Amir et al.'s protocol.

    Args:
        source: ``(C, h, w)``.
        target: ``(C, h', w')``.
        cells: int64 ``(M, 2)`` as (column, row).

    Returns:
        int64 ``(M, 2)`` as (column, row).
    """
    queries = F.normalize(source[:, cells[:, 1], cells[:, 0]], dim=0)
    best = torch.einsum("cm,cn->mn", queries, F.normalize(target.flatten(1), dim=0)).argmax(dim=1)
    width = target.shape[2]
    return torch.stack([best % width, best // width], dim=-1)
