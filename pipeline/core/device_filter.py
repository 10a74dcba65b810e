"""The guided filter of :mod:`pipeline.core.guided_filter` on tensors, for maps that are on a card."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.guided_filter import SMALLEST_DETERMINANT


class DeviceGuidedFilter:
    """The filter of one guide; the same numbers as :class:`pipeline.core.guided_filter.GuidedFilter`.

    Args:
        guide: float32 ``(3, H, W)`` in [0, 1].
        radius_px: Windows are squares of 2 * radius + 1 pixels of the guide.
        epsilon: Regularization in squared units of the guide.
    """

    def __init__(self, guide: Tensor, *, radius_px: int, epsilon: float) -> None:
        self._radius = radius_px
        self._guide = guide
        self._means = self._mean(guide)
        products = self._mean((guide[:, None] * guide[None]).flatten(0, 1)).reshape(3, 3, *guide.shape[1:])
        eye = torch.eye(3, device=guide.device)[:, :, None, None]
        self._inverse = _inverse(products - self._means[:, None] * self._means[None] + epsilon * eye)

    def __call__(self, values: Tensor) -> Tensor:
        """The filtered map ``(H, W)``."""
        return apply_fit(self.fit(values), self._guide)

    def fit(self, values: Tensor) -> Tensor:
        """The mean linear fit at every pixel of a map ``(H, W)``: slopes for R, G, B and the intercept."""
        mean = self._mean(values[None])[0]
        against = self._mean(self._guide * values) - self._means * mean
        slopes = (self._inverse * against[None]).sum(1)
        intercept = mean - (slopes * self._means).sum(0)
        return self._mean(torch.cat([slopes, intercept[None]]))

    def _mean(self, maps: Tensor) -> Tensor:
        """Means over windows of maps ``(K, H, W)``, mirrored at the border with the border pixel repeated."""
        for dim in (1, 2):
            length = maps.shape[dim]
            where = torch.arange(-self._radius, length + self._radius, device=maps.device) % (2 * length)
            maps = maps.index_select(dim, torch.where(where >= length, 2 * length - 1 - where, where))
        return F.avg_pool2d(maps[None], 2 * self._radius + 1, stride=1)[0]


def apply_fit(fit: Tensor, guide: Tensor) -> Tensor:
    """The map ``(H, W)`` of a fit ``(4, H, W)`` on a guide ``(3, H, W)``."""
    return (fit[:3] * guide).sum(0) + fit[3]


def _inverse(matrix: Tensor) -> Tensor:
    """The inverse of symmetric matrices ``(3, 3, H, W)``, by cofactors."""

    def cofactor(row: int, column: int) -> Tensor:
        r1, r2, c1, c2 = (row + 1) % 3, (row + 2) % 3, (column + 1) % 3, (column + 2) % 3
        return matrix[r1, c1] * matrix[r2, c2] - matrix[r1, c2] * matrix[r2, c1]

    cofactors = torch.stack([torch.stack([cofactor(row, column) for column in range(3)]) for row in range(3)])
    determinant = (matrix[0] * cofactors[0]).sum(0).clamp(min=float(SMALLEST_DETERMINANT))
    return cofactors / determinant
