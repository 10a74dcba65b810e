"""Point correspondences between two images: best buddies, spread by k-means, ranked by saliency.

Source: Amir et al. 2021, section 4 (https://arxiv.org/abs/2112.05814), on log-binned keys of layer 9.

Differs from the reference: images without a foreground best buddy give an empty list instead of an error; k-means
is FAISS's, so which of several equally salient pairs represents a cluster may differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import FloatArray, IntArray, normalize_rows
from pipeline.core.kmeans import assign, fit_kmeans


@dataclass(frozen=True, slots=True)
class CellPairs:
    """Matched cells.

    Attributes:
        first: int64 ``(M,)``, row-major cell indices in the first image.
        second: The same in the second image.
        score: float32 ``(M,)``, mean of the two saliencies, falling.
    """

    first: IntArray
    second: IntArray
    score: FloatArray


def nearest_neighbors(a: FloatArray, b: FloatArray, chunk: int = 2048) -> tuple[IntArray, IntArray]:
    """For unit rows, the most similar row of ``b`` for each of ``a`` and the other way round.

    Args:
        a: float32 ``(N, C)``.
        b: float32 ``(M, C)``.
        chunk: Rows of ``a`` compared at once, so that the similarities are never in memory as a whole.
    """
    forward = np.empty(len(a), np.int64)
    backward = np.zeros(len(b), np.int64)
    best = np.full(len(b), -np.inf, np.float32)
    for start in range(0, len(a), chunk):
        similarity = a[start : start + chunk] @ b.T
        forward[start : start + chunk] = similarity.argmax(axis=1)
        rows = similarity.argmax(axis=0)
        values = similarity[rows, np.arange(len(b))]
        better = values > best
        backward[better] = rows[better] + start
        best[better] = values[better]
    return forward, backward


def best_buddies(a: FloatArray, b: FloatArray) -> tuple[IntArray, IntArray]:
    """Pairs ``(i, j)`` where each is the other's nearest neighbor.

    >>> first, second = best_buddies(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[[2, 0]])
    >>> first.tolist(), second.tolist()
    ([0, 2], [1, 0])
    """
    forward, backward = nearest_neighbors(a, b)
    first = np.flatnonzero(backward[forward] == np.arange(len(a)))
    return first, forward[first]


def find_correspondences(
    descriptors: tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]],
    saliency: tuple[FloatArray, FloatArray],
    *,
    num_pairs: int = 10,
    threshold: float = 0.05,
) -> CellPairs:
    """A few well spread, salient pairs of cells.

    Args:
        descriptors: Of either image, ``(N, C)`` and ``(M, C)``, any scale.
        saliency: Of either image, ``(N,)`` and ``(M,)`` in [0, 1].
        num_pairs: At most this many pairs.
        threshold: Foreground is more salient than this.
    """
    unit = normalize_rows(descriptors[0]), normalize_rows(descriptors[1])
    forward, backward = nearest_neighbors(*unit)
    mutual = backward[forward] == np.arange(len(forward))
    # A cell also has to be what some foreground cell of the other image is nearest to.
    wanted = np.zeros(len(forward), bool)
    wanted[backward[saliency[1] > threshold]] = True
    first = np.flatnonzero(mutual & (saliency[0] > threshold) & wanted)
    second = forward[first]
    if not len(first):
        return CellPairs(first, second, np.zeros(0, np.float32))
    score = np.asarray((saliency[0][first] + saliency[1][second]) / 2, np.float32)
    both = np.concatenate([descriptors[0][first], descriptors[1][second]], axis=1)
    rows = normalize_rows(both)
    labels, _ = assign(rows, fit_kmeans(rows, min(num_pairs, len(rows)), iterations=100))
    picks = [
        members[score[members].argmax()] for k in np.unique(labels) if len(members := np.flatnonzero(labels == k))
    ]
    chosen = np.array(sorted(picks, key=lambda row: -score[row]), np.int64)
    return CellPairs(first[chosen], second[chosen], score[chosen])


def find_partners(
    descriptors: tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]],
    cells: IntArray,
) -> IntArray:
    """For given cells of the first image, the most similar cells of the second, in the given order.

    Args:
        descriptors: Of either image, ``(N, C)`` and ``(M, C)``, any scale.
        cells: int64 ``(P,)``, row-major cell indices in the first image.
    """
    forward, _ = nearest_neighbors(normalize_rows(descriptors[0][cells]), normalize_rows(descriptors[1]))
    return forward
