"""ROIAlign over the levels of a pyramid, with gradients for the features.

He, Gkioxari, Dollár, Girshick, Mask R-CNN, 2017, section 3 (https://arxiv.org/abs/1703.06870); which level a box
is pooled from: Lin et al., Feature Pyramid Networks, 2017, equation 1. Where torchvision's operator cannot be
called (:data:`pipeline.core.torchvision_ops.HAS_COMPILED_OPS`), the samples are read with ``grid_sample``, which
gives the same numbers and is differentiable on every device. The tracker's own ROIAlign
(``stages.track.roi_align``) pools one frame without gradients and is faster there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.core.torchvision_ops import HAS_COMPILED_OPS

CANONICAL_CELLS: Final = 14.0
"""A box of 14 to 28 cells of a level is pooled from it: 224 px at a stride of 16 px, as in the paper."""

_MOST_VALUES: Final = 1 << 24
"""Samples that are held at once, times channels."""


def roi_align(features: Tensor, boxes: Tensor, output_size: int) -> Tensor:
    """Average bilinear samples in ``output_size`` x ``output_size`` bins of every box.

    The number of samples per bin and axis is ``ceil(box cells / output_size)``, and cell ``i`` has its center at
    ``i + 0.5`` ("aligned"), as in Detectron2's ROIAlignV2.

    Args:
        features: float32 ``(C, h, w)``.
        boxes: float32 ``(N, 4)`` in cells: left, top, right, bottom.
        output_size: Bins per axis.

    Returns:
        float32 ``(N, C, output_size, output_size)``.
    """
    if HAS_COMPILED_OPS:
        from torchvision.ops import roi_align as compiled

        pooled: Tensor = compiled(features[None], [boxes], output_size, 1.0, -1, True)
        return pooled
    if not len(boxes):
        return features.new_zeros(0, features.shape[0], output_size, output_size)
    samples = int(((boxes[:, 2:] - boxes[:, :2]) / output_size).ceil().clamp_min(1).max())
    step = max(1, _MOST_VALUES // (features.shape[0] * (output_size * samples) ** 2))
    return torch.cat([_sampled(features, chunk, output_size) for chunk in torch.split(boxes, step)])


def _sampled(features: Tensor, boxes: Tensor, output_size: int) -> Tensor:
    """:func:`roi_align` of a few boxes by ``grid_sample``."""
    height, width = features.shape[-2:]
    rows, row_weights = _samples(boxes[:, 1], boxes[:, 3], height, output_size)
    columns, column_weights = _samples(boxes[:, 0], boxes[:, 2], width, output_size)
    count, down, across = len(boxes), rows.shape[1], columns.shape[1]
    grid = torch.stack(
        [columns[:, None].expand(count, down, across), rows[:, :, None].expand(count, down, across)], dim=3
    )
    values = F.grid_sample(
        features[None], grid.reshape(1, count * down, across, 2), padding_mode="border", align_corners=True
    )[0]
    weights = row_weights[:, :, None] * column_weights[:, None]
    values = values.reshape(-1, count, down, across) * weights
    bins = values.reshape(-1, count, output_size, down // output_size, output_size, across // output_size)
    return bins.sum(dim=(3, 5)).transpose(0, 1)


def _samples(start: Tensor, stop: Tensor, length: int, bins: int) -> tuple[Tensor, Tensor]:
    """Positions of the samples along one axis in ``grid_sample``'s coordinates, and their weights.

    Returns:
        ``(N, bins * samples)`` each; boxes that need fewer samples have weights of 0 for the rest.
    """
    size = stop - start
    counts = (size / bins).ceil().clamp_min(1)
    number = torch.arange(int(counts.max()), dtype=start.dtype, device=start.device)
    first = torch.arange(bins, dtype=start.dtype, device=start.device)
    offsets = first[:, None] + (number + 0.5) / counts[:, None, None]
    positions = (start - 0.5)[:, None, None] + offsets * (size / bins)[:, None, None]
    inside = (number < counts[:, None, None]) & (positions >= -1) & (positions <= length)
    weights = inside.to(start.dtype) / counts[:, None, None]
    positions = positions.clamp(0, length - 1) * (2 / max(length - 1, 1)) - 1
    return positions.flatten(1), weights.flatten(1)


def assign_levels(boxes: Tensor, strides: Sequence[float]) -> Tensor:
    """The level that each box is pooled from.

    Args:
        boxes: float ``(N, 4)`` in input pixels.
        strides: Of the levels in input pixels, finest first, each twice the one before.

    Returns:
        int64 ``(N,)``.

    >>> boxes = torch.tensor([[0.0, 0, 100, 100], [0, 0, 224, 224], [0, 0, 2000, 2000]])
    >>> assign_levels(boxes, [4, 8, 16, 32]).tolist()
    [0, 2, 3]
    """
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp_min(0).sqrt()
    levels = torch.floor(torch.log2(sides / (CANONICAL_CELLS * strides[0]) + 1e-8))
    return levels.clamp(0, len(strides) - 1).to(torch.int64)


class LevelPooling(nn.Module):
    """Pool boxes of a batch, each from the level that fits its size; in place of ``MultiScaleRoIAlign``.

    Args:
        strides: Of the levels in input pixels, finest first.
        output_size: Bins per axis.
    """

    def __init__(self, strides: Sequence[float], output_size: int) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.output_size = (output_size, output_size)

    def forward(
        self, features: Mapping[str, Tensor], boxes: Sequence[Tensor], image_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Features of all boxes.

        Args:
            features: ``(B, C, h, w)`` by name, finest level first; levels after those of ``strides`` are unused.
            boxes: ``(N_i, 4)`` per image in input pixels.
            image_shapes: Unused; torchvision's signature.

        Returns:
            ``(sum of N_i, C, output_size, output_size)``.
        """
        maps = list(features.values())[: len(self.strides)]
        size = self.output_size[0]
        pooled = []
        for image, own in enumerate(boxes):
            levels = assign_levels(own, self.strides)
            result = maps[0].new_zeros(len(own), maps[0].shape[1], size, size)
            for level, stride in enumerate(self.strides):
                chosen = torch.where(levels == level)[0]
                if len(chosen):
                    values = roi_align(maps[level][image], own[chosen] / stride, size)
                    result = result.index_put((chosen,), values.to(result.dtype))
            pooled.append(result)
        return torch.cat(pooled)
