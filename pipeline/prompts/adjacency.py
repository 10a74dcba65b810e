"""Which cells of a grid are neighbors."""

from __future__ import annotations

import numpy as np

from pipeline.core.arrays import FloatArray, IntArray


def grid_edges(grid_hw: tuple[int, int]) -> tuple[IntArray, FloatArray]:
    """Pairs of adjacent cells (8 neighbors), int64 ``(2, E)``, and their distances in cells, float32 ``(E,)``."""
    height, width = grid_hw
    cells = np.arange(height * width, dtype=np.int64).reshape(height, width)
    pairs, lengths = [], []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        first = cells[: height - down, max(0, -right) : width - max(0, right)]
        second = cells[down:, max(0, right) : width - max(0, -right)]
        pairs.append(np.stack([first.ravel(), second.ravel()]))
        lengths.append(np.full(first.size, np.hypot(down, right), np.float32))
    return np.concatenate(pairs, axis=1), np.concatenate(lengths)
