"""The foreground that a set of images shares, for backbones whose attention says little about objects.

Two cues of each image say where an object may be: how far a cell is from the distribution of the cells along the
border, and the normalized cut of the cells' graph. A linear discriminant is trained on them over all images, by
self-training as in :mod:`stages.cosegment.foreground`.

Sources: Fisher 1936 for the discriminant; Shi and Malik 2000 for the cut; the border as background after Wei et
al. 2012, "Geodesic Saliency Using Background Priors". The combination is this project's; ``docs/parts.md`` has
measurements.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import FloatArray
from stages.cosegment.foreground import Moments
from stages.cosegment.objectness import Objectness, border_evidence

_DIMENSIONS = 64
_SHRINKAGE = 0.1
_SEED_DEVIATIONS = 1.5
_ROUNDS = 6
# Mean squared distance of unit descriptors from their mean below which images are uniform.
_SPREAD_MIN = 1e-4


def object_evidence(tokens: npt.NDArray[np.floating], cut: npt.NDArray[np.floating]) -> FloatArray:
    """Where an image's object may be.

    Args:
        tokens: ``(C, h, w)``, compared with those along the border; any scale.
        cut: ``(h, w)``, soft saliency of the normalized cut.

    Returns:
        float32 ``(h * w,)``, the standardized sum of both cues; zeros where neither varies.
    """
    border = border_evidence(tokens)
    total = _standardized(np.asarray(cut, np.float32).ravel())
    return _standardized(total if border is None else total + border)


def fit_shared_foreground(rows: Sequence[FloatArray], evidence: Sequence[FloatArray]) -> Objectness | None:
    """Learn what the images have in common.

    Args:
        rows: For each image unit descriptors ``(N, C)``.
        evidence: For each image :func:`object_evidence`, ``(N,)``.

    Returns:
        The function, for images of the set and others; None where no cell stands out.
    """
    prior, everything = np.concatenate(evidence), np.concatenate(rows)
    mean = everything.mean(axis=0)
    centered = everything - mean
    if float(np.square(centered).sum(axis=1).mean()) < _SPREAD_MIN:
        return None
    basis = _principal_directions(centered)
    points = np.asarray(centered @ basis, np.float32)
    products = np.asarray(points.T @ points, np.float64)
    ridge = _SHRINKAGE * float(np.trace(products)) / len(points) / points.shape[1]
    labels = (prior > prior.mean() + _SEED_DEVIATIONS * prior.std()).astype(np.float32)
    weights, bias = np.zeros(points.shape[1], np.float32), 0.0
    for _ in range(_ROUNDS):
        if not 1.0 < float(labels.sum()) < len(labels) - 1.0:
            return None
        # The evidence as prior of the posterior that labels the next round.
        weights, bias = Moments.of(points, labels, products).discriminant(ridge)
        logits = np.clip(points @ weights + bias + prior, -30.0, 30.0)
        labels = np.asarray(1.0 / (1.0 + np.exp(-logits)), np.float32)
    direction = np.asarray(basis @ weights, np.float32)
    return Objectness(direction, bias - float(mean @ direction))


def _principal_directions(centered: FloatArray) -> FloatArray:
    """The leading principal directions ``(C, d)``, from every fourth row where there are many."""
    sample = centered[::4] if len(centered) >= 4 * _DIMENSIONS else centered
    _, vectors = np.linalg.eigh(sample.T @ sample)
    return np.ascontiguousarray(vectors[:, -_DIMENSIONS:], np.float32)


def _standardized(values: FloatArray) -> FloatArray:
    deviation = float(values.std())
    if deviation < 1e-6:
        return np.zeros_like(values)
    return np.asarray((values - values.mean()) / deviation, np.float32)
