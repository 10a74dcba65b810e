"""Non-maximum suppression: torchvision's operator where it can be called, else the same rule in numpy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.core.torchvision_ops import HAS_COMPILED_OPS


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Suppress boxes that overlap a better one of the same group.

    Args:
        boxes: float ``(N, 4)`` as left, top, right, bottom.
        scores: float ``(N,)``.
        groups: int64 ``(N,)``; boxes of different groups never suppress each other.
        iou_threshold: A box is dropped when its IoU with a kept one is larger.

    Returns:
        int64 ``(K,)``: the kept boxes, best score first; the first of equal scores wins.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])
    >>> batched_nms(boxes, torch.tensor([0.5, 0.9, 0.7]), torch.zeros(3, dtype=torch.int64), 0.5).tolist()
    [1, 2]
    """
    if HAS_COMPILED_OPS:
        from torchvision.ops import batched_nms as compiled

        kept: Tensor = compiled(boxes, scores, groups, iou_threshold)
        return kept
    found = [
        members[greedy_nms(boxes[members], scores[members], iou_threshold)]
        for group in torch.unique(groups)
        for members in (torch.where(groups == group)[0],)
    ]
    if not found:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    kept = torch.cat(found).sort().values
    return kept[scores[kept].sort(descending=True, stable=True).indices]


def greedy_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Suppression within one group; arguments and result as for :func:`batched_nms`."""
    order = scores.sort(descending=True, stable=True).indices
    overlaps = (pairwise_iou(boxes[order], boxes[order]) > iou_threshold).cpu().numpy()
    alive = np.ones(len(order), np.bool_)
    kept = []
    for place in range(len(order)):
        if alive[place]:
            kept.append(place)
            alive &= ~overlaps[place]
    return order[torch.tensor(kept, dtype=torch.int64, device=order.device)]


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of every box of ``(N, 4)`` with every box of ``(M, 4)``; 0 where both are empty.

    >>> pairwise_iou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[1.0, 0, 3, 2]])).item()
    0.3333333432674408
    """
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (first, second)]
    upper = torch.maximum(first[:, None, :2], second[None, :, :2])
    lower = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (lower - upper).clamp_min(0).prod(dim=2)
    return shared / (areas[0][:, None] + areas[1][None] - shared).clamp_min(1e-9)
