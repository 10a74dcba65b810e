"""Edge-aware smoothing of soft maps by the colours of the frame: the guided filter with a colour guide.

In every window the map is fitted by a linear function of the guide's three channels; a pixel takes the mean of the
fits of all windows that hold it. Where the guide has an edge the result has one too. He, Sun, Tang, Guided Image
Filtering, TPAMI 2013, sections 3.2 and 3.5 (https://doi.org/10.1109/TPAMI.2012.213).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

FloatMap = npt.NDArray[np.float32]


class GuidedFilter:
    """The part of the filter that depends on the guide alone, so that several maps share it.

    Args:
        guide: float32 ``(H, W, 3)`` in [0, 1].
        radius_px: Windows are squares of 2 * radius + 1 pixels.
        epsilon: Variance of the guide, in squared units of it, from which an edge is kept.

    >>> guide = np.zeros((4, 8, 3), np.float32); guide[:, 4:] = 1
    >>> soft = np.tile(np.linspace(0, 1, 8, dtype=np.float32), (4, 1))
    >>> smooth = GuidedFilter(guide, radius_px=3, epsilon=1e-4)(soft)[0]
    >>> bool(smooth[4] - smooth[3] > 2 * (soft[0, 4] - soft[0, 3]))
    True
    """

    def __init__(self, guide: FloatMap, *, radius_px: int, epsilon: float) -> None:
        self._size = (2 * radius_px + 1, 2 * radius_px + 1)
        self._guide = [np.ascontiguousarray(guide[..., channel]) for channel in range(3)]
        self._means = [self._mean(channel) for channel in self._guide]
        self._inverse = _invert(self._covariance(epsilon))

    def __call__(self, values: FloatMap) -> FloatMap:
        """Smooth one map, float32 ``(H, W)``."""
        mean = self._mean(values)
        against = [
            self._mean(channel * values) - channel_mean * mean
            for channel, channel_mean in zip(self._guide, self._means, strict=True)
        ]
        slopes = [_dot(row, against) for row in self._inverse]
        intercept = mean - _dot(slopes, self._means)
        return _dot([self._mean(slope) for slope in slopes], self._guide) + self._mean(intercept)

    def _covariance(self, epsilon: float) -> list[list[FloatMap]]:
        def entry(row: int, column: int) -> FloatMap:
            product = self._mean(self._guide[row] * self._guide[column])
            covariance = product - self._means[row] * self._means[column]
            return covariance + np.float32(epsilon) if row == column else covariance

        upper = {(r, c): entry(r, c) for r in range(3) for c in range(r, 3)}
        return [[upper[min(r, c), max(r, c)] for c in range(3)] for r in range(3)]

    def _mean(self, values: FloatMap) -> FloatMap:
        mean = cv2.boxFilter(values, cv2.CV_32F, self._size, borderType=cv2.BORDER_REFLECT)
        return np.asarray(mean, dtype=np.float32)


def _dot(left: Sequence[FloatMap], right: Sequence[FloatMap]) -> FloatMap:
    return np.asarray(left[0] * right[0] + left[1] * right[1] + left[2] * right[2], dtype=np.float32)


def _invert(matrix: list[list[FloatMap]]) -> list[list[FloatMap]]:
    """The inverse of a symmetric 3 x 3 matrix of maps, by cofactors."""

    def cofactor(row: int, column: int) -> FloatMap:
        # Rows and columns taken cyclically make the signs of the cofactors come out by themselves.
        r1, r2, c1, c2 = (row + 1) % 3, (row + 2) % 3, (column + 1) % 3, (column + 2) % 3
        return matrix[r1][c1] * matrix[r2][c2] - matrix[r1][c2] * matrix[r2][c1]

    upper = {(r, c): cofactor(r, c) for r in range(3) for c in range(r, 3)}
    cofactors = [[upper[min(r, c), max(r, c)] for c in range(3)] for r in range(3)]
    determinant = _dot(matrix[0], cofactors[0])
    return [[entry / determinant for entry in row] for row in cofactors]
