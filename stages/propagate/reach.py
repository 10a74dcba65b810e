"""How far an object can get between two frames: labels farther from where it was seen are dropped.

Matches are looked for in wide windows, so that fast objects are found again. What resembles an object elsewhere in
its window gets some of its label in this way, and once it has some it gets more in each frame (the drift onto
distractors). An object that was seen in the frame before is near that place: within a few cells, and more the
larger it is, because large objects are near the camera and move and grow faster. An object that was not seen in
the frame before may come back anywhere.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SEEN = 0.3
"""Cells with more than this of an object in the frame before are where it was."""

STEP_PER_SIZE = 0.3
"""Cells of distance per cell of the object's size (the square root of its area)."""


def drop_out_of_reach(labels: Tensor, before: Tensor, *, step_cells: float, parts: int, frames: int = 1) -> Tensor:
    """Labels without what is too far from where each object was; what is dropped becomes background.

    Args:
        labels: Propagated, float32 ``(K + 1, h s, w s)``, background first, on s x s parts per cell.
        before: The same of the frame before.
        step_cells: How far an object may get per frame, in cells, with ``STEP_PER_SIZE`` of its size in addition.
            Distance is the larger of that in rows and that in columns.
        parts: s.
        frames: Frames from ``before`` to ``labels``.

    Returns:
        float32 ``(K + 1, h s, w s)``, summing to 1 where the labels did.

    >>> before = torch.tensor([[[0.0, 1.0, 1.0, 1.0]], [[1.0, 0.0, 0.0, 0.0]]])
    >>> labels = torch.tensor([[[0.5, 0.5, 0.5, 0.5]], [[0.5, 0.5, 0.5, 0.5]]])
    >>> drop_out_of_reach(labels, before, step_cells=1, parts=1)[1].tolist()
    [[0.5, 0.5, 0.0, 0.0]]
    """
    objects = labels[1:]
    if not len(objects):
        return labels
    was = F.avg_pool2d(before[1:], parts)
    size = was.sum((1, 2), keepdim=True).sqrt()
    reach = (frames * (step_cells + STEP_PER_SIZE * size)).round()
    height, width = was.shape[1:]
    farthest = min(
        math.ceil(frames * (step_cells + STEP_PER_SIZE * math.sqrt(height * width))), max(height, width)
    )
    allowed = _distance((was > SEEN).to(labels.dtype), farthest) <= reach
    allowed |= ~(was > SEEN).flatten(1).any(1)[:, None, None]
    kept = objects * allowed.repeat_interleave(parts, 1).repeat_interleave(parts, 2)
    return torch.cat([labels[:1] + (objects - kept).sum(0, keepdim=True), kept])


def _distance(cells: Tensor, farthest: int) -> Tensor:
    """Distance ``(K, h, w)`` of each cell to the nearest 1 of ``cells``, in steps to any of 8 neighbors.

    Larger than ``farthest`` where it is more. In steps of one cell: no value is asked of a card.
    """
    distance = 1 - cells
    for _ in range(farthest):
        cells = F.max_pool2d(cells, 3, stride=1, padding=1)
        distance = distance + (1 - cells)
    return distance
