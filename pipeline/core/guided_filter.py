"""Edge-aware smoothing of soft maps: the guided filter with a color guide.

In every window the map is fitted by a linear function of the guide's three channels; a pixel takes the mean of the
fits of all windows that contain it, so the result has an edge where the guide has one. He, Sun, Tang, Guided Image
Filtering, TPAMI 2013, sections 3.2 and 3.5 (https://doi.org/10.1109/TPAMI.2012.213). :func:`fast_guided_filter`
fits on a small copy of the guide and applies the fits to a larger one: He, Sun, Fast Guided Filter, 2015
(https://arxiv.org/abs/1505.00996).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.core.resizing import shrunk, shrunk_by_whole_factor

FloatMap = npt.NDArray[np.float32]
SMALLEST_DETERMINANT = np.float32(1e-20)


class GuidedFilter:
    """The filter of one guide: what depends on the guide alone is computed once and shared by several maps.

    Args:
        guide: float32 ``(H, W, 3)`` in [0, 1].
        radius_px: Windows are squares of 2 * radius + 1 pixels of the guide.
        epsilon: Regularization in squared units of the guide: edges of a larger variance are kept.

    >>> guide = np.zeros((4, 8, 3), np.float32); guide[:, 4:] = 1
    >>> soft = np.tile(np.linspace(0, 1, 8, dtype=np.float32), (4, 1))
    >>> smooth = GuidedFilter(guide, radius_px=3, epsilon=1e-4)(soft)[0]
    >>> bool(smooth[4] - smooth[3] > 2 * (soft[0, 4] - soft[0, 3]))
    True
    """

    def __init__(self, guide: FloatMap, *, radius_px: int, epsilon: float) -> None:
        self._size = (2 * radius_px + 1, 2 * radius_px + 1)
        self._guide = _channels(guide)
        self._means = [self._mean(channel) for channel in self._guide]
        self._inverse = _invert(self._covariance(epsilon))

    def __call__(self, values: FloatMap) -> FloatMap:
        """The filtered map, float32 ``(H, W)``, of a map of that size."""
        *slopes, intercept = self.fit(values)
        return _dot(slopes, self._guide) + intercept

    def fit(self, values: FloatMap) -> list[FloatMap]:
        """The mean linear fit at every pixel of a map ``(H, W)``: slopes for R, G, B and the intercept."""
        mean = self._mean(values)
        against = [
            self._mean(channel * values) - channel_mean * mean
            for channel, channel_mean in zip(self._guide, self._means, strict=True)
        ]
        slopes = [_dot(row, against) for row in self._inverse]
        intercept = mean - _dot(slopes, self._means)
        return [*(self._mean(slope) for slope in slopes), self._mean(intercept)]

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


def fast_guided_filter(
    image: npt.NDArray[np.uint8],
    maps: FloatMap,
    *,
    radius_px: int,
    epsilon: float = 1e-4,
    small_side_px: int = 240,
    large_side_px: int = 360,
) -> FloatMap:
    """Filter soft maps of any resolution by a large image, fitting on a small copy of it.

    Args:
        image: uint8 ``(H, W, 3)``, the guide.
        maps: float32 ``(K, h, w)`` that cover the whole image.
        radius_px: Half the window's side, in pixels of ``image``.
        epsilon: As in :class:`GuidedFilter`.
        small_side_px: Short side of the copy on which the fits are computed.
        large_side_px: Least short side of the result, where the image has that many.

    Returns:
        float32 ``(K, H', W')``: the image's size over the largest whole factor that leaves ``large_side_px``.
    """
    guides = fast_guides(image, small_side_px=small_side_px, large_side_px=large_side_px)
    small, large, scale = _in_unit_range(guides.small), _in_unit_range(guides.large), guides.scale
    smooth = GuidedFilter(small, radius_px=max(1, round(radius_px * scale)), epsilon=epsilon)
    guide, size = _channels(large), large.shape[1::-1]
    filtered = np.empty((len(maps), *large.shape[:2]), np.float32)
    for index, values in enumerate(maps):
        resized = _resize(np.ascontiguousarray(values, np.float32), small.shape[1::-1])
        *slopes, intercept = (_resize(coefficient, size) for coefficient in smooth.fit(resized))
        filtered[index] = _dot(slopes, guide) + intercept
    return filtered


@dataclass(frozen=True, slots=True)
class FastGuides:
    """The copies of an image that :func:`fast_guided_filter` works with.

    Attributes:
        small: uint8 ``(h, w, 3)``, on which the fits are computed.
        large: uint8 ``(H', W', 3)``, to which they are applied.
        scale: Of the small one.
    """

    small: npt.NDArray[np.uint8]
    large: npt.NDArray[np.uint8]
    scale: float


def fast_guides(image: npt.NDArray[np.uint8], *, small_side_px: int = 240, large_side_px: int = 360) -> FastGuides:
    """See :func:`fast_guided_filter`."""
    scale = min(1.0, small_side_px / min(image.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return FastGuides(shrunk(image, (height, width)), shrunk_by_whole_factor(image, large_side_px), scale)


def _in_unit_range(image: npt.NDArray[np.uint8]) -> FloatMap:
    return np.asarray(image.astype(np.float32) / 255, np.float32)


def _resize(values: FloatMap, size: tuple[int, ...]) -> FloatMap:
    return np.asarray(cv2.resize(values, (size[0], size[1]), interpolation=cv2.INTER_LINEAR), np.float32)


def _channels(guide: FloatMap) -> list[FloatMap]:
    return [np.ascontiguousarray(guide[..., channel]) for channel in range(3)]


def _dot(left: Sequence[FloatMap], right: Sequence[FloatMap]) -> FloatMap:
    return np.asarray(left[0] * right[0] + left[1] * right[1] + left[2] * right[2], dtype=np.float32)


def _invert(matrix: list[list[FloatMap]]) -> list[list[FloatMap]]:
    """The inverse of a symmetric 3 x 3 matrix of maps, by cofactors."""

    def cofactor(row: int, column: int) -> FloatMap:
        # Rows and columns taken cyclically give the cofactors their signs.
        r1, r2, c1, c2 = (row + 1) % 3, (row + 2) % 3, (column + 1) % 3, (column + 2) % 3
        return matrix[r1][c1] * matrix[r2][c2] - matrix[r1][c2] * matrix[r2][c1]

    upper = {(r, c): cofactor(r, c) for r in range(3) for c in range(r, 3)}
    cofactors = [[upper[min(r, c), max(r, c)] for c in range(3)] for r in range(3)]
    determinant = np.asarray(np.maximum(_dot(matrix[0], cofactors[0]), SMALLEST_DETERMINANT), np.float32)
    return [[np.asarray(entry / determinant, np.float32) for entry in row] for row in cofactors]
