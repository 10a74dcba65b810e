"""Co-segmentation of a set of frames: which clusters are foreground, and the parts of the foreground.

Source: Amir et al. 2021, "Deep ViT Features as Dense Visual Descriptors", section 4
(https://arxiv.org/abs/2112.05814).

Differs from the reference:
- Saliency is divided by its mean over the frame, and a cluster's vote is a multiple of that mean; the paper's
  absolute threshold holds only for the heads it picked of DINO ViT-S/8.
- Without a salient cluster the result is empty masks, where the reference fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import FloatArray, IntArray
from pipeline.core.kmeans import assign, elbow_kmeans, fit_kmeans, sample_rows, squared_distances, vote_salient

VOTE_SHARPNESS = 20.0
"""Log odds of the vote for a difference of 1 in squared distance."""
CERTAIN_LOGIT = 30.0
"""Log odds where clusters are all of one kind."""


@dataclass(frozen=True, slots=True)
class KmeansOptions:
    """How k-means is run; see :func:`pipeline.core.kmeans.elbow_kmeans`."""

    elbow: float = 0.975
    max_clusters: int = 14
    iterations: int = 300
    redo: int = 10
    sample_interval: int = 100


def fit_clusters(
    descriptors: list[FloatArray],
    saliency: list[FloatArray],
    *,
    options: KmeansOptions,
    threshold: float,
    votes_percent: float,
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Cluster the cells of all frames and vote for the salient clusters.

    Args:
        descriptors: For each frame float32 ``(N, C)``, L2-normalized.
        saliency: For each voting frame float32 ``(N,)``, compared with ``threshold``; frames beyond these do not
            vote.
        options: Of k-means.
        threshold: Mean saliency a frame must see in a cluster to vote for it.
        votes_percent: Share of the frames that must agree.

    Returns:
        The centroids ``(K, C)`` and bool ``(K,)``.
    """
    everything = np.concatenate(descriptors)
    clustering = elbow_kmeans(
        sample_rows(descriptors, options.sample_interval),
        everything,
        elbow=options.elbow,
        max_clusters=options.max_clusters,
        iterations=options.iterations,
        redo=options.redo,
    )
    labels = [assign(rows, clustering.centroids)[0] for rows in descriptors[: len(saliency)]]
    salient = vote_salient(labels, saliency, len(clustering), threshold=threshold, votes_percent=votes_percent)
    return clustering.centroids, salient


def fit_parts(
    descriptors: list[FloatArray],
    foreground: list[npt.NDArray[np.bool_]],
    *,
    num_parts: int | None,
    options: KmeansOptions,
) -> FloatArray:
    """Cluster the foreground into parts.

    Args:
        descriptors: For each frame float32 ``(N, C)``, L2-normalized.
        foreground: For each frame bool ``(N,)``.
        num_parts: Wanted number of parts; None lets the elbow rule find it.
        options: Of k-means; ``sample_interval`` counts foreground cells.

    Returns:
        float32 ``(P, C)``; P is smaller than wanted where there are fewer cells, and 0 without foreground.
    """
    kept = [rows[mask] for rows, mask in zip(descriptors, foreground, strict=True)]
    everything = np.concatenate(kept)
    if not len(everything):
        return np.zeros((0, everything.shape[1]), np.float32)
    training = sample_rows(kept, options.sample_interval)
    if num_parts is not None:
        if len(training) < num_parts:
            training = everything
        return fit_kmeans(training, num_parts, iterations=options.iterations, redo=options.redo)
    return elbow_kmeans(
        training,
        everything,
        elbow=options.elbow,
        max_clusters=options.max_clusters,
        iterations=options.iterations,
        redo=options.redo,
    ).centroids


def relative_saliency(saliency: FloatArray) -> FloatArray:
    """Saliency divided by its mean over the frame; zeros where the map is constant or not finite.

    >>> relative_saliency(np.array([0.0, 1.0, 2.0], np.float32))
    array([0., 1., 2.], dtype=float32)
    >>> relative_saliency(np.full(3, 7.0, np.float32))
    array([0., 0., 0.], dtype=float32)
    """
    values = np.asarray(saliency, np.float32)
    if not np.isfinite(values).all() or values.size == 0 or float(np.ptp(values)) <= 0:
        return np.zeros_like(values)
    return (values / max(float(values.mean()), 1e-12)).astype(np.float32)


def vote_logits(
    rows: FloatArray, clusters: FloatArray, salient: npt.NDArray[np.bool_], sharpness: float = VOTE_SHARPNESS
) -> FloatArray:
    """How much nearer each cell is to a salient cluster than to any other, as log odds; 0 is the border.

    Args:
        rows: float32 ``(N, C)``.
        clusters: float32 ``(K, C)``.
        salient: bool ``(K,)``.
        sharpness: Log odds for a difference of 1 in squared distance.
    """
    if salient.all() or not salient.any():
        return np.full(len(rows), CERTAIN_LOGIT if salient.any() else -CERTAIN_LOGIT, np.float32)
    distances = squared_distances(rows, clusters)
    margin = distances[:, ~salient].min(axis=1) - distances[:, salient].min(axis=1)
    return np.asarray(sharpness * margin, np.float32)


def three_stage_parts(
    descriptors: list[FloatArray],
    foreground: list[npt.NDArray[np.bool_]],
    *,
    num_parts: int | None,
    options: KmeansOptions,
    part_elbow: float = 0.94,
    relabel: Callable[[int, FloatArray], IntArray] | None = None,
) -> FloatArray:
    """Parts by three stages: over-segment, keep what all frames have in common, cluster that again.

    Args:
        descriptors: For each frame float32 ``(N, C)``, L2-normalized.
        foreground: For each frame bool ``(N,)``.
        num_parts: Wanted number of parts; None lets the elbow rule find it.
        options: Of k-means.
        part_elbow: The elbow coefficient of the middle stage.
        relabel: Refined part of each cell of a frame (-1 is background) from the frame's number and the middle
            stage's centroids; the nearest centroid inside the foreground by default.

    Returns:
        float32 ``(P, C)``. Where no part is common to all frames, the parts of two stages.
    """
    first = fit_parts(descriptors, foreground, num_parts=None, options=replace(options, elbow=part_elbow))
    if not len(first):
        return first

    def nearest(frame: int, centroids: FloatArray) -> IntArray:
        return np.where(foreground[frame], assign(descriptors[frame], centroids)[0], -1)

    labels = [(relabel or nearest)(frame, first) for frame in range(len(descriptors))]
    common = common_labels(labels, len(first))
    kept = [np.isin(frame_labels, np.flatnonzero(common)) for frame_labels in labels]
    if not any(mask.any() for mask in kept):
        return fit_parts(descriptors, foreground, num_parts=num_parts, options=options)
    return fit_parts(descriptors, kept, num_parts=num_parts, options=options)


def common_labels(labels: list[IntArray], count: int) -> npt.NDArray[np.bool_]:
    """Which labels 0 .. ``count`` - 1 appear in every frame.

    >>> common_labels([np.array([0, 1, -1]), np.array([1, 2])], 3).tolist()
    [False, True, False]
    """
    present = np.ones(count, bool)
    for frame_labels in labels:
        present &= np.isin(np.arange(count), frame_labels)
    return present
