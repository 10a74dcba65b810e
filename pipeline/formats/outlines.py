"""Outlines of objects as data sets hold them: polygons in continuous pixel coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def fill_outlines(
    polygons: Sequence[npt.NDArray[np.floating]], image_hw: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Pixels whose center lies in any of some polygons; a polygon that crosses itself is filled by parity.

    The center of pixel (row, column) is at (column + 0.5, row + 0.5), as in COCO.

    Args:
        polygons: ``(N, 2)`` each: corners as (x, y); closed from the last to the first.
        image_hw: Height and width.

    Returns:
        bool ``(H, W)``.

    >>> fill_outlines([np.array([[1, 0], [3, 0], [3, 1.4], [1, 1.4]])], (2, 4)).astype(int).tolist()
    [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    mask = np.zeros(image_hw, np.bool_)
    for polygon in polygons:
        mask |= _filled(np.asarray(polygon, np.float64), image_hw)
    return mask


def _filled(polygon: npt.NDArray[np.float64], image_hw: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Even-odd rule along every row: a pixel is inside where an odd number of edges cross the row left of it."""
    height, width = image_hw
    crossings = np.zeros((height, width + 1), np.int64)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        low, high = sorted((y0, y1))
        rows = np.arange(max(0, int(np.ceil(low - 0.5))), min(height, int(np.ceil(high - 0.5))))
        if len(rows):
            at = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            crossings[rows, np.ceil(at - 0.5).clip(0, width).astype(np.int64)] += 1
    return np.asarray(np.cumsum(crossings[:, :width], axis=1) % 2 == 1, np.bool_)
