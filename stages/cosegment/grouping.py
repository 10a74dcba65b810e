"""Cells of the foreground grouped into objects: what looks alike and moves together, and touches.

Average linkage over a graph of neighboring cells: the two adjacent groups whose cells differ least on average are
joined until none differ by less than a limit. Appearance and motion are compared in one vector per cell, so that
things that touch are separate where either says so.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import FloatArray, IntArray

_NEIGHBOR_CELLS = 1.5
_NEVER = np.inf


def group_cells(vectors: FloatArray, positions: IntArray, max_distance: float) -> IntArray:
    """Group cells by average linkage among neighbors (8-connectivity).

    Args:
        vectors: ``(N, D)``, what is compared.
        positions: int64 ``(N, 2)``, row and column of each cell.
        max_distance: Groups whose mean squared distance between cells is larger stay apart.

    Returns:
        int64 ``(N,)``, the group of each cell, from 0.

    >>> row = np.stack([np.zeros(5, np.int64), np.arange(5)], axis=1)
    >>> group_cells(np.array([[0.0], [0.1], [0.0], [3.0], [3.1]]), row, 1.0).tolist()
    [0, 0, 0, 1, 1]
    """
    count = len(vectors)
    if count == 0:
        return np.zeros(0, np.int64)
    means = np.asarray(vectors, np.float64).copy()
    spreads, sizes = np.zeros(count), np.ones(count)
    offsets = positions[:, None, :] - positions[None, :, :]
    adjacent = (np.square(offsets).sum(axis=2) <= _NEIGHBOR_CELLS**2) & ~np.eye(count, dtype=bool)
    squares = np.square(means).sum(axis=1)
    distances = np.where(adjacent, squares[:, None] + squares[None, :] - 2.0 * means @ means.T, _NEVER)
    owner = np.arange(count)
    while True:
        first, second = divmod(int(distances.argmin()), count)
        if not distances[first, second] <= max_distance:
            break
        sizes[first], spreads[first], means[first] = _joined(sizes, spreads, means, first, second)
        owner[owner == second] = first
        adjacent[first] |= adjacent[second]
        adjacent[first, [first, second]] = False
        adjacent[second] = False
        adjacent[:, first] = adjacent[first]
        adjacent[:, second] = False
        fresh = np.square(means - means[first]).sum(axis=1) + spreads + spreads[first]
        distances[first] = distances[:, first] = np.where(adjacent[first], fresh, _NEVER)
        distances[second] = distances[:, second] = _NEVER
    return np.unique(owner, return_inverse=True)[1].astype(np.int64)


def _joined(
    sizes: npt.NDArray[np.float64],
    spreads: npt.NDArray[np.float64],
    means: npt.NDArray[np.float64],
    first: int,
    second: int,
) -> tuple[float, float, npt.NDArray[np.float64]]:
    """Size, mean squared distance to the mean, and mean of two groups together."""
    size = float(sizes[first] + sizes[second])
    share = float(sizes[second]) / size
    between = means[second] - means[first]
    spread = (1.0 - share) * spreads[first] + share * spreads[second]
    return size, float(spread + share * (1.0 - share) * (between @ between)), means[first] + share * between
