"""ROIAlign: the features inside boxes, pooled to a fixed size with bilinear samples.

Paper: He, Gkioxari, Dollár, Girshick, Mask R-CNN, 2017, section 3 "RoIAlign" (https://arxiv.org/abs/1703.06870).
Semantics, to the border rule, are those of ``torchvision.ops.roi_align``, whose compiled operator is called where
it has a kernel for the device (:func:`pipeline.core.torchvision_ops.has_roi_align`). Else
:func:`separable_roi_align` computes the same numbers: a bilinear sample is a product of a weight in y and a weight
in x, and so is the mean over a bin's samples, so a box is two small products over the cells it touches. Its
working memory is that of one box, for any number of boxes and samples.

Differs from the reference: it pools with optional weights (a mask, saliency), so that background inside a box
need not count; and boxes are given in frame pixels and scaled by the :class:`PatchGrid`, separately in x and y.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.core.grid import PatchGrid
from pipeline.core.host_copy import send_like
from pipeline.core.torchvision_ops import has_roi_align

_EMPTY_WEIGHT = 1e-6
"""A bin whose mean weight is below this gets the unweighted mean."""


@dataclass(frozen=True, slots=True)
class RoiAlignSpec:
    """How boxes are pooled.

    Attributes:
        output_hw: Bins of the result, (down, across).
        sampling_ratio: Samples per bin and axis; 0 or less is adaptive: ``ceil(box cells / bins)``.
        aligned: Whether cell ``i`` has its center at ``i + 0.5`` (True, exact) or at ``i`` (the legacy rule, which
            also widens a box below one cell to one cell).
    """

    output_hw: tuple[int, int] = (1, 1)
    sampling_ratio: int = 0
    aligned: bool = True

    def __post_init__(self) -> None:
        if min(self.output_hw) < 1:
            raise ValueError(f"RoiAlignSpec.output_hw must be positive, got {self.output_hw}")


def pool_boxes(
    features: Tensor,
    xyxy: Tensor,
    grid: PatchGrid,
    spec: RoiAlignSpec | None = None,
    *,
    weights: Tensor | None = None,
) -> Tensor:
    """Pool the features inside boxes that are given in frame pixels.

    The part of a box outside the cells is cut off first (and a box wholly outside pools the nearest border), so a
    box that leaves the frame is not diluted with zeros.

    Args:
        features: ``(C, h, w)`` on ``grid``.
        xyxy: ``(N, 4)`` in continuous frame pixels, on the host.
        grid: Where the cells lie on the frame.
        spec: How to pool; one bin, adaptive samples by default.
        weights: Non-negative ``(h, w)`` for all boxes or ``(N, h, w)`` for each. A bin is then the weighted mean
            of its samples, ``align(w * f) / align(w)``; a bin without any weight is the plain mean.

    Returns:
        float32 ``(N, C, bins down, bins across)`` on the device of ``features``.

    >>> grid = PatchGrid((28, 28), (2, 2), (14.0, 14.0), (7.0, 7.0))
    >>> left_column = torch.tensor([[0.0, 0.0, 14.0, 28.0]])
    >>> pool_boxes(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), left_column, grid).flatten().tolist()
    [2.0]
    """
    spec = spec or RoiAlignSpec()
    boxes = _clip_to_cells(grid.boxes_to_cells(xyxy.to(torch.float32)), grid.grid_hw)
    values = features.to(torch.float32)
    if weights is None:
        return roi_align(values, boxes, spec)
    weights = weights.to(features.device, torch.float32)
    if weights.ndim == 2:
        return _divide(roi_align(torch.cat([values * weights, weights[None], values]), boxes, spec))
    if weights.shape[0] != boxes.shape[0]:
        raise ValueError(f"{weights.shape[0]} weight maps for {boxes.shape[0]} boxes")
    pooled = values.new_empty(boxes.shape[0], values.shape[0], *spec.output_hw)
    # One weight map per box: multiply only the cells around the box, not the whole map.
    for n, (left, top, right, bottom) in enumerate(boxes.tolist()):
        rows, columns = _window(top, bottom, grid.grid_hw[0]), _window(left, right, grid.grid_hw[1])
        crop, weight = values[:, rows, columns], weights[n, rows, columns]
        moved = boxes[n : n + 1] - boxes.new_tensor([columns.start, rows.start, columns.start, rows.start])
        pooled[n] = _divide(roi_align(torch.cat([crop * weight, weight[None], crop]), moved, spec))[0]
    return pooled


def roi_align(features: Tensor, boxes: Tensor, spec: RoiAlignSpec) -> Tensor:
    """ROIAlign over one map, by torchvision's operator where it works here, else :func:`separable_roi_align`.

    Args:
        features: float32 ``(C, h, w)``.
        boxes: float32 ``(N, 4)`` in cells, as (left, top, right, bottom), on the host.
        spec: How to pool.

    Returns:
        float32 ``(N, C, bins down, bins across)`` on the device of the map.
    """
    if not has_roi_align(features.device.type):
        return separable_roi_align(features, boxes, spec)
    from torchvision.ops import roi_align as compiled

    boxes, samples = send_like(boxes, features), max(spec.sampling_ratio, 0) or -1
    pooled: Tensor = compiled(features[None], [boxes], spec.output_hw, 1.0, samples, spec.aligned)
    return pooled


def separable_roi_align(features: Tensor, boxes: Tensor, spec: RoiAlignSpec) -> Tensor:
    """ROIAlign as two matrix products per box, over only those cells that the box touches.

    Args:
        features: float32 ``(C, h, w)``; channels-last memory saves a copy.
        boxes: float32 ``(N, 4)`` in cells, on the host.
        spec: How to pool.

    Returns:
        float32 ``(N, C, bins down, bins across)``, equal to ``torchvision.ops.roi_align`` to float rounding.

    >>> ramp = torch.arange(4.0).repeat(1, 4, 1)
    >>> separable_roi_align(ramp, torch.tensor([[1.0, 0.0, 3.0, 4.0]]), RoiAlignSpec((1, 2))).flatten().tolist()
    [1.0, 2.0]
    """
    rows = features.permute(1, 2, 0).contiguous()
    height, width, channels = rows.shape
    down, across = spec.output_hw
    pooled = rows.new_empty(boxes.shape[0], down, across, channels)
    # The weights are small; made on the host, their extents need no answer from a card.
    starts, sizes = _extents(boxes.detach(), aligned=spec.aligned)
    weights_y = _axis_weights(starts[:, 1], sizes[:, 1], height, down, spec.sampling_ratio)
    weights_x = _axis_weights(starts[:, 0], sizes[:, 0], width, across, spec.sampling_ratio)
    bands, spans = _touched(weights_y), _touched(weights_x.sum(dim=1, keepdim=True))
    sent = send_like(torch.cat([weights_y.flatten(1), weights_x.flatten(1)], dim=1), rows)
    weights_y = sent[:, : down * height].reshape(len(boxes), down, height)
    weights_x = sent[:, down * height :].reshape(len(boxes), across, width)
    for n, ((left, right),) in enumerate(spans):
        columns = rows.new_empty(down, (right - left) * channels)
        # One row of bins at a time, so that a cell is read only for the one or two bins it belongs to.
        for bin_row, (top, bottom) in enumerate(bands[n]):
            cells = rows[top:bottom, left:right].flatten(1)
            torch.mv(cells.T, weights_y[n, bin_row, top:bottom], out=columns[bin_row])
        torch.matmul(weights_x[n, :, left:right], columns.view(down, right - left, channels), out=pooled[n])
    return pooled.permute(0, 3, 1, 2)


def _extents(boxes: Tensor, *, aligned: bool) -> tuple[Tensor, Tensor]:
    """Start and size of the boxes in index coordinates (cell ``i`` at ``i``), ``(N, 2)`` each as (x, y)."""
    starts = boxes[:, :2] - (0.5 if aligned else 0.0)
    sizes = boxes[:, 2:] - boxes[:, :2]
    return starts, sizes if aligned else sizes.clamp_min(1.0)


def _axis_weights(start: Tensor, size: Tensor, length: int, bins: int, sampling_ratio: int) -> Tensor:
    """Weight of every cell along one axis in every bin: ``(N, bins, length)``, rows sum to at most 1.

    Samples further than one cell outside count as zero, those nearer as the border cell: the operator's rule.
    """
    count = start.shape[0]
    if count == 0:
        return start.new_zeros(0, bins, length)
    samples = (
        torch.full_like(start, sampling_ratio) if sampling_ratio > 0 else (size / bins).ceil().clamp_min(0)
    )[:, None, None]
    step = torch.arange(max(int(samples.max()), 1), dtype=start.dtype)
    where = (
        start[:, None, None]
        + (torch.arange(bins, dtype=start.dtype)[:, None] + (step + 0.5) / samples.clamp_min(1))
        * (size / bins)[:, None, None]
    )
    share = ((step < samples) & (where >= -1) & (where <= length)).to(start.dtype) / samples.clamp_min(1)
    where = where.clamp(0, length - 1)
    low = where.floor()
    above = where - low
    weights = start.new_zeros(count, bins, length)
    weights.scatter_add_(2, low.long(), share * (1 - above))
    weights.scatter_add_(2, (low.long() + 1).clamp_max(length - 1), share * above)
    return weights


def _touched(weights: Tensor) -> list[list[tuple[int, int]]]:
    """First and one past the last cell with a weight, for each box and bin; (0, 1) where there is none."""
    used = weights.ne(0).to(torch.int8)
    first = used.argmax(dim=2)
    last = used.shape[2] - used.flip(2).argmax(dim=2)
    last = torch.where(used.any(dim=2), last, first + 1)
    return [
        list(zip(starts, stops, strict=True)) for starts, stops in zip(first.tolist(), last.tolist(), strict=True)
    ]


def _clip_to_cells(boxes: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    height, width = grid_hw
    limit = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp_min(0), limit)


def _window(start: float, stop: float, length: int) -> slice:
    """Cells that samples in ``[start, stop]`` (widened to one cell) can touch, and a neighbor on each side."""
    first = min(max(int(start) - 2, 0), length - 1)
    return slice(first, min(int(max(stop, start + 1)) + 3, length))


def _divide(sums: Tensor) -> Tensor:
    """Weighted sums over weights, from channels laid out as (weighted values, weight, plain values)."""
    channels = sums.shape[1] // 2
    weighted, weight, plain = sums[:, :channels], sums[:, channels : channels + 1], sums[:, channels + 1 :]
    return torch.where(weight > _EMPTY_WEIGHT, weighted / weight.clamp_min(_EMPTY_WEIGHT), plain)
