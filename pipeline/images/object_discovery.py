"""One object in an image without a graph: what differs from the image's border, refined by a discriminant.

The keys of DINOv2 are so similar to one another that a thresholded affinity (TokenCut) leaves the graph in one
piece. Here the cells far from the distribution of the border's cells are the first evidence of an object, and a
linear discriminant (``stages.cosegment.foreground``) is trained on it within the image. Not from a paper;
``docs/parts.md`` has measurements.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pipeline.core.arrays import FloatArray, normalize_rows
from stages.cosegment.cosegmentation import relative_saliency
from stages.cosegment.foreground import fit_discriminant

BoolArray = npt.NDArray[np.bool_]

_DIMENSIONS = 48
_SHRINKAGE = 0.1
_EIGHT = np.ones((3, 3), bool)


def border_distance(tokens: npt.NDArray[np.floating]) -> FloatArray:
    """Squared Mahalanobis distance of every cell to the cells along the image's border.

    Args:
        tokens: ``(C, h, w)``, any scale.

    Returns:
        float32 ``(h, w)``; zeros where all cells are equal.
    """
    channels, height, width = tokens.shape
    rows = normalize_rows(tokens.reshape(channels, -1).T)
    rows = rows - rows.mean(axis=0)
    _, _, directions = np.linalg.svd(rows, full_matrices=False)
    points = np.asarray(rows @ directions[:_DIMENSIONS].T, np.float64)
    border = np.ones((height, width), bool)
    border[1:-1, 1:-1] = False
    known = points[border.ravel()]
    variance = float(points.var(axis=0).mean())
    if variance < 1e-12:
        return np.zeros((height, width), np.float32)
    aside = points - known.mean(axis=0)
    covariance = np.cov(known.T) + _SHRINKAGE * variance * np.eye(points.shape[1])
    squared = np.einsum("nd,nd->n", aside @ np.linalg.inv(covariance), aside)
    return np.asarray(squared.reshape(height, width), np.float32)


def find_object(descriptors: npt.NDArray[np.floating], tokens: npt.NDArray[np.floating]) -> BoolArray:
    """The cells of the main object.

    Args:
        descriptors: ``(C, h, w)``, on which the discriminant is trained; any scale.
        tokens: ``(C', h, w)``, compared with the border.

    Returns:
        bool ``(h, w)``, one connected piece; everything where nothing differs.
    """
    channels, height, width = descriptors.shape
    rows = normalize_rows(descriptors.reshape(channels, -1).T)
    evidence = relative_saliency(border_distance(tokens).ravel())
    learned = fit_discriminant([rows], [evidence], [np.zeros_like(evidence)], cues="saliency")
    logits = np.full(len(rows), -1.0, np.float32) if learned is None else learned.logits(rows)
    foreground = (logits > 0).reshape(height, width)
    if not foreground.any():
        return np.ones((height, width), bool)
    pieces, count = ndimage.label(foreground, _EIGHT)
    areas = np.bincount(pieces.ravel(), minlength=count + 1)
    areas[0] = 0
    return np.asarray(pieces == areas.argmax(), bool)
