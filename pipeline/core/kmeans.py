"""K-means on descriptors through FAISS: the elbow rule, assignment, and keeping numbers through refits.

Source: Amir et al. 2021, "Deep ViT Features as Dense Visual Descriptors", section 4
(https://arxiv.org/abs/2112.05814): Euclidean k-means on L2-normalized descriptors, K grown until the mean
squared distance stops improving.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from pipeline.core.arrays import FloatArray, IntArray

_SEED = 1234
# FAISS sub-samples to this many points a centroid when there are more; its own default, named here so that
# nobody wonders why a larger training set changes nothing.
_MAX_POINTS_PER_CENTROID = 256
# Below this mean squared distance (unit descriptors) the clustering is exact and more clusters mean nothing.
_EXACT = 1e-7


@dataclass(frozen=True, slots=True)
class Clustering:
    """A fitted set of centroids.

    Attributes:
        centroids: float32 ``(K, C)``, as k-means returns them (not re-normalized).
        objective: Mean squared distance of the rows it was judged on to their nearest centroid.
    """

    centroids: FloatArray
    objective: float

    def __len__(self) -> int:
        return int(self.centroids.shape[0])


def fit_kmeans(
    rows: FloatArray, num_clusters: int, *, iterations: int = 300, redo: int = 10, seed: int = _SEED
) -> FloatArray:
    """Euclidean k-means, on the CPU.

    FAISS on a card would take the first one, whatever ``extract.device`` names, and a fixed share of its memory,
    for fits of at most a few thousand rows.

    Args:
        rows: float32 ``(N, C)``, N at least 1.
        num_clusters: Wanted K; fewer come back when there are fewer rows.
        iterations: Lloyd iterations of one try.
        redo: Tries from different starts, the best is kept.
        seed: Of FAISS's random numbers.

    Returns:
        float32 ``(min(K, N), C)``.

    Raises:
        ValueError: There is no row, or ``num_clusters`` is below 1.
    """
    if rows.ndim != 2 or rows.shape[0] < 1 or num_clusters < 1:
        raise ValueError(f"k-means needs (N >= 1, C) rows and K >= 1, got {rows.shape} and K = {num_clusters}")
    num_clusters = min(num_clusters, rows.shape[0])
    if num_clusters == rows.shape[0]:
        return np.array(rows, np.float32)
    kmeans = faiss.Kmeans(
        rows.shape[1],
        num_clusters,
        niter=iterations,
        nredo=redo,
        seed=seed,
        gpu=False,
        min_points_per_centroid=1,
        max_points_per_centroid=_MAX_POINTS_PER_CENTROID,
    )
    kmeans.train(np.ascontiguousarray(rows, np.float32))
    return np.asarray(kmeans.centroids, np.float32).reshape(num_clusters, -1)


def squared_distances(rows: FloatArray, centroids: FloatArray) -> FloatArray:
    """Squared Euclidean distances ``(N, K)``, never negative."""
    cross = rows @ centroids.T
    norms = np.einsum("nc,nc->n", rows, rows)[:, None] + np.einsum("kc,kc->k", centroids, centroids)[None]
    return np.asarray(np.maximum(norms - 2.0 * cross, 0.0), np.float32)


def assign(rows: FloatArray, centroids: FloatArray) -> tuple[IntArray, FloatArray]:
    """Nearest centroid of every row and the squared distance to it; the first wins a tie.

    >>> assign(np.eye(2, dtype=np.float32), np.array([[0.0, 1.0], [1.0, 0.0]], np.float32))[0]
    array([1, 0])
    """
    distances = squared_distances(rows, centroids)
    nearest = distances.argmin(axis=1).astype(np.int64)
    return nearest, distances[np.arange(len(rows)), nearest]


def elbow_kmeans(
    training: FloatArray,
    rows: FloatArray,
    *,
    elbow: float = 0.975,
    max_clusters: int = 14,
    iterations: int = 300,
    redo: int = 10,
    seed: int = _SEED,
) -> Clustering:
    """K-means with K grown until one more cluster no longer pays.

    K = 1, 2, ...: the first K of at least 2 whose objective is above ``elbow`` times the one before ends the
    growth, and *that* clustering is used (as the reference does), or the last one when none fails the test.

    Args:
        training: float32 ``(n, C)`` the centroids are fitted on.
        rows: float32 ``(N, C)`` the objective is measured on.
        elbow: In (0, 1]; lower stops earlier.
        max_clusters: Largest K tried.
        iterations: See :func:`fit_kmeans`.
        redo: See :func:`fit_kmeans`.
        seed: See :func:`fit_kmeans`.
    """
    previous: float | None = None
    best: Clustering | None = None
    for num_clusters in range(1, min(max_clusters, len(training)) + 1):
        centroids = fit_kmeans(training, num_clusters, iterations=iterations, redo=redo, seed=seed)
        objective = float(assign(rows, centroids)[1].mean())
        best = Clustering(centroids, objective)
        if objective < _EXACT or (previous is not None and objective > elbow * previous):
            break
        previous = objective
    if best is None:
        raise ValueError("the elbow rule needs at least one training row")
    return best


def sample_rows(per_image: list[FloatArray], interval: int) -> FloatArray:
    """Rows 0, interval, 2 * interval, ... of each image, starting anew in each."""
    return np.concatenate([rows[::interval] for rows in per_image])


def vote_salient(
    labels: list[IntArray],
    saliency: list[FloatArray],
    num_clusters: int,
    *,
    threshold: float = 0.065,
    votes_percent: float = 75.0,
) -> npt.NDArray[np.bool_]:
    """Which clusters enough images call salient.

    An image votes for a cluster when the mean saliency of its cells in that cluster is above ``threshold``;
    an image without a cell in it does not vote. A cluster is salient with at least
    ``ceil(images * votes_percent / 100)`` votes.

    Args:
        labels: For each voting image, the cluster of each of its cells.
        saliency: For each voting image, the saliency of each cell in [0, 1].
        num_clusters: K.
        threshold: Mean saliency to exceed.
        votes_percent: Share of the images that must agree.

    Returns:
        bool ``(K,)``.
    """
    votes = np.zeros(num_clusters, np.int64)
    for image_labels, image_saliency in zip(labels, saliency, strict=True):
        counts = np.bincount(image_labels, minlength=num_clusters)
        sums = np.bincount(image_labels, weights=image_saliency, minlength=num_clusters)
        votes += (counts > 0) & (sums > threshold * counts)
    needed = int(np.ceil(len(labels) * votes_percent / 100.0))
    return votes >= max(needed, 1)


def match_centroids(old: FloatArray, new: FloatArray, *, max_distance: float) -> IntArray:
    """Which old centroid each new one continues (Hungarian on squared distances).

    Args:
        old: float32 ``(P, C)``.
        new: float32 ``(Q, C)``.
        max_distance: Squared distance above which a pair is no continuation.

    Returns:
        int64 ``(Q,)``: the row of ``old``, or -1 for a new one.

    >>> match_centroids(np.eye(3, dtype=np.float32)[:2], np.eye(3, dtype=np.float32)[[2, 1]], max_distance=0.5)
    array([-1,  1])
    """
    matched = np.full(len(new), -1, np.int64)
    if len(old) and len(new):
        distances = squared_distances(new, old)
        # Pairs that are too far cost the limit: they may be dropped without hurting a pair that is near.
        rows, columns = linear_sum_assignment(np.minimum(distances, max_distance))
        near = distances[rows, columns] < max_distance
        matched[rows[near]] = columns[near]
    return matched


def minibatch_update(
    centroids: FloatArray,
    counts: npt.NDArray[np.float64],
    rows: FloatArray,
    labels: IntArray,
    *,
    forgetting: float,
) -> tuple[FloatArray, npt.NDArray[np.float64]]:
    """One step of mini-batch k-means whose memory fades.

    Each count is multiplied by ``forgetting`` before the new members are added; a centroid is the mean of its
    members so weighted (Sculley 2010, with a floor under the learning rate). Centroids without members stay.

    Args:
        centroids: float32 ``(K, C)``.
        counts: float64 ``(K,)``, the members so far, faded.
        rows: float32 ``(N, C)``.
        labels: int64 ``(N,)``, the centroid of each row.
        forgetting: In [0, 1]; 1 never forgets.

    Returns:
        New centroids and counts.

    >>> moved, counts = minibatch_update(
    ...     np.zeros((2, 1), np.float32), np.array([3.0, 3.0]), np.array([[4.0]], np.float32), np.array([1]),
    ...     forgetting=1.0)
    >>> moved.ravel().tolist(), counts.tolist()
    ([0.0, 1.0], [3.0, 4.0])
    """
    members = np.bincount(labels, minlength=len(centroids)).astype(np.float64)
    # One product with the one-hot labels: many times faster than adding row by row.
    sums = (labels == np.arange(len(centroids))[:, None]).astype(np.float32) @ rows
    faded = np.where(members > 0, counts * forgetting, counts) + members
    step = (sums - members[:, None] * centroids) / np.maximum(faded, 1e-12)[:, None]
    return np.asarray(centroids + step, np.float32), faded
