"""How many parts a foreground has: as many as are found again on other frames of the same video.

With the right number of clusters, k-means fitted on one half of the frames divides the cells as k-means on the
other half does; with too many, some cluster of one half has no counterpart in the other. Source: Hennig 2007,
"Cluster-wise assessment of cluster stability" (Computational Statistics & Data Analysis 52): a cluster whose
Jaccard coefficient with its counterpart is below one half is dissolved. Differs from it: halves of the frames take
the place of bootstrap samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from pipeline.core.arrays import FloatArray
from pipeline.core.kmeans import assign, fit_kmeans

MIN_STABILITY = 0.5
"""Jaccard coefficient that even the least stable part must have (Hennig 2007)."""

MAX_PARTS = 7
_SPLITS = 4
_ITERATIONS = 20
_REDO = 2
_MAX_CELLS = 2000


def fit_stable_parts(frames: Sequence[FloatArray], *, iterations: int, redo: int) -> FloatArray:
    """Cluster the foreground into the largest number of parts that is stable over halves of the frames.

    Args:
        frames: For each frame the foreground's unit rows ``(n, d)``, possibly none.
        iterations: Lloyd iterations of the final clustering.
        redo: Its tries, of which the best is kept.

    Returns:
        float32 ``(P, d)``, P at most :data:`MAX_PARTS`; one part where not even two are stable or there are too
        few frames or cells to tell, none without cells.
    """
    kept = [rows for rows in frames if len(rows)]
    if not kept:
        return np.zeros((0, frames[0].shape[1] if len(frames) else 0), np.float32)
    step = -(-sum(map(len, kept)) // _MAX_CELLS)
    thinned = [rows[number % step :: step] for number, rows in enumerate(kept)]
    count = next((k for k in range(MAX_PARTS, 1, -1) if stability(thinned, k) >= MIN_STABILITY), 1)
    return fit_kmeans(np.concatenate(kept), count, iterations=iterations, redo=redo)


def stability(frames: Sequence[FloatArray], count: int) -> float:
    """The Jaccard coefficient of the least stable of so many clusters, in the mean over divisions of the frames.

    Args:
        frames: For each frame rows ``(n, d)``.
        count: Number of clusters.

    Returns:
        In [0, 1]; 0 where a half has fewer than two cells per cluster.
    """
    random = np.random.default_rng(0)
    everything = np.concatenate(list(frames))
    worst = []
    for _ in range(_SPLITS):
        order = random.permutation(len(frames))
        halves = [order[: len(order) // 2], order[len(order) // 2 :]]
        if any(sum(len(frames[place]) for place in half) < 2 * count for half in halves):
            return 0.0
        labels = []
        for half in halves:
            rows = np.concatenate([frames[place] for place in half])
            labels.append(assign(everything, fit_kmeans(rows, count, iterations=_ITERATIONS, redo=_REDO))[0])
        common = np.zeros((count, count))
        np.add.at(common, (labels[0], labels[1]), 1)
        either = common.sum(axis=1, keepdims=True) + common.sum(axis=0, keepdims=True) - common
        jaccard = common / np.maximum(either, 1)
        worst.append(jaccard[linear_sum_assignment(jaccard, maximize=True)].min())
    return float(np.mean(worst))
