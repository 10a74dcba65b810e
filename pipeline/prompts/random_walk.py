"""Random walks over the cells of a frame: how often a walk that starts at a cell visits every other one.

The graph joins adjacent cells and, more weakly, each cell with those that are most similar to it anywhere in the
frame. A walk ends at each step with a small probability, so that one sparse factorization answers every start
(random walk with restart: Tong, Faloutsos, Pan, Fast Random Walk with Restart, ICDM 2006; for segmentation: Kim,
Lee, Lee, Generative Image Segmentation Using Random Walks with Restart, ECCV 2008).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.sparse.linalg import splu

from pipeline.core.arrays import FloatArray, normalize_rows
from pipeline.prompts.adjacency import grid_edges

END_PROBABILITY = 1e-3
NUM_SIMILAR = 11
SIMILAR_WEIGHT = 0.5
_LEAST = 1e-12


class RandomWalker:
    """Walks over the cells at half resolution, where the factorization takes a tenth of a second.

    Args:
        directions: float32 ``(h, w, d)``: unit rows of the cells.
    """

    def __init__(self, directions: FloatArray) -> None:
        self._grid_hw = directions.shape[0], directions.shape[1]
        self._half_hw = max(1, directions.shape[0] // 2), max(1, directions.shape[1] // 2)
        halved = _halved(directions, self._half_hw)
        graph = walk_graph(normalize_rows(halved.reshape(-1, directions.shape[2])), self._half_hw)
        degrees = np.asarray(graph.sum(axis=1)).ravel()
        self._factors = splu((diags(degrees * (1 + END_PROBABILITY)) - graph).tocsc())

    def visits(self, cells: Sequence[int]) -> FloatArray:
        """Logarithm of the visits, ``(N,)``, of walks that start at ``cells``; only differences have a meaning."""
        height, width = self._half_hw
        starts = np.zeros(height * width)
        for cell in cells:
            row, column = divmod(int(cell), self._grid_hw[1])
            starts[min(row // 2, height - 1) * width + min(column // 2, width - 1)] += 1
        logarithms = np.log(self._factors.solve(starts).clip(_LEAST)).reshape(height, width).astype(np.float32)
        return np.asarray(cv2.resize(logarithms, self._grid_hw[::-1]).ravel(), np.float32)


def walk_graph(directions: FloatArray, grid_hw: tuple[int, int]) -> csr_matrix:
    """Symmetric weights ``(N, N)`` of the steps between cells, from their unit rows ``(N, d)``."""
    count = len(directions)
    edges, lengths = grid_edges(grid_hw)
    steps = (1 - np.einsum("ed,ed->e", directions[edges[0]], directions[edges[1]])).clip(min=0)
    scale = float(np.median(steps)) + 1e-6 if len(steps) else 1.0
    near = coo_matrix((np.exp(-steps / scale) / lengths, (edges[0], edges[1])), shape=(count, count))
    similarities = directions @ directions.T
    kept = min(NUM_SIMILAR, count)
    similar = np.argpartition(-similarities, kept - 1, axis=1)[:, :kept]
    rows = np.repeat(np.arange(count), kept)
    weights = np.exp(-(1 - similarities[rows, similar.ravel()]).clip(min=0) / scale)
    far = coo_matrix((weights, (rows, similar.ravel())), shape=(count, count)).tocsr()
    far = (far + far.T) / 2
    far = far - diags(far.diagonal())
    return (near + near.T + SIMILAR_WEIGHT * far).tocsr()


def _halved(directions: FloatArray, half_hw: tuple[int, int]) -> FloatArray:
    """Means over blocks of two by two cells; an odd last row or column joins none."""
    height, width = half_hw
    if min(directions.shape[:2]) < 2:
        return directions[:height, :width]
    blocks = directions[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1)
    return np.asarray(blocks.mean(axis=(1, 3)), np.float32)
