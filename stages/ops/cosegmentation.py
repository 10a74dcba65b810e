"""Co-segmentation of a set of frames: which clusters are foreground, and the parts of the foreground.

Source: Amir et al. 2021, "Deep ViT Features as Dense Visual Descriptors", section 4
(https://arxiv.org/abs/2112.05814).

Differs from the reference:
- Saliency is divided by its mean over the frame, and a cluster's vote is a multiple of that mean; the paper's
  absolute threshold holds only for the heads it picked of DINO ViT-S/8.
- Without a salient cluster the result is empty masks, where the reference fails.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.ops.kmeans import (
    FloatArray,
    IntArray,
    assign,
    elbow_kmeans,
    fit_kmeans,
    sample_rows,
    squared_distances,
    vote_salient,
)


@dataclass(frozen=True, slots=True)
class KmeansOptions:
    """How k-means is run; see :func:`stages.ops.kmeans.elbow_kmeans`."""

    elbow: float = 0.975
    max_clusters: int = 14
    iterations: int = 300
    redo: int = 10
    sample_interval: int = 100


@dataclass(frozen=True, slots=True)
class Codebook:
    """What a set of frames is made of.

    Attributes:
        clusters: float32 ``(K, C)``, the centroids of everything.
        salient: bool ``(K,)``, which of them are foreground.
        parts: float32 ``(P, C)``, the centroids of the foreground.
        numbers: int64 ``(P,)``, the number (from 1) each part is written as.
    """

    clusters: FloatArray
    salient: npt.NDArray[np.bool_]
    parts: FloatArray
    numbers: IntArray

    @property
    def is_empty(self) -> bool:
        """Whether nothing is foreground."""
        return len(self.parts) == 0


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
        descriptors: For each frame float32 ``(N, C)``, L2-normalised.
        saliency: For each frame float32 ``(N,)``; compared with ``threshold``.
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
    labels = [assign(rows, clustering.centroids)[0] for rows in descriptors]
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
        descriptors: For each frame float32 ``(N, C)``, L2-normalised.
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


def foreground_evidence(rows: FloatArray, codebook: Codebook, sharpness: float = 20.0) -> FloatArray:
    """How much nearer each cell is to a salient cluster than to any other, in [0, 1]; 0.5 is the border.

    The logistic of the difference of squared distances, so that a cell's nearest cluster decides at 0.5.
    """
    if not codebook.salient.any():
        return np.zeros(len(rows), np.float32)
    if codebook.salient.all():
        return np.ones(len(rows), np.float32)
    distances = squared_distances(rows, codebook.clusters)
    margin = distances[:, ~codebook.salient].min(axis=1) - distances[:, codebook.salient].min(axis=1)
    return np.asarray(1.0 / (1.0 + np.exp(-sharpness * margin)), np.float32)
