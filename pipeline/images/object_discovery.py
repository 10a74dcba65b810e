"""One object in an image without a graph: the piece of the foreground that stands out most.

The keys of DINOv2 are so similar to one another that a thresholded affinity (TokenCut) leaves the graph in one
piece. Where an objectness is bundled for the descriptors (``stages.cosegment.objectness``), the object is a
connected piece above some level of it. Elsewhere the cells far from the distribution of the border's cells are the
evidence of an object, and a linear discriminant (``stages.cosegment.foreground``) is trained on it within the
image. Not from a paper; ``docs/parts.md`` has measurements.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pipeline.core.arrays import FloatArray, normalize_rows
from stages.cosegment.cosegmentation import relative_saliency
from stages.cosegment.foreground import fit_discriminant
from stages.cosegment.objectness import border_distance

BoolArray = npt.NDArray[np.bool_]

_EIGHT = np.ones((3, 3), bool)
# Sizes in parts of the grid's short side, so that a finer grid (LiFT) changes nothing.
_BLUR = 0.02
_RING = 0.0625
_MIN_CELLS = 0.004
# The levels tried, as log odds above the middle one, where the contrast is measured.
_MIDDLE_LEVEL = 2.0
_LEVELS = np.arange(-3.0, 6.0)
_AREA_POWER = 0.25
_CENTER_DEVIATION = 0.3


def find_object(descriptors: npt.NDArray[np.floating], tokens: npt.NDArray[np.floating]) -> BoolArray:
    """The cells of the main object, by a discriminant that is trained within the image.

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


def find_salient_piece(logits: FloatArray) -> BoolArray:
    """The connected piece that stands out most from what surrounds it, over several levels of a map.

    A piece at some level is rated by how much larger the probability inside is than in a ring around it, times a
    small power of its area and a Gaussian of its distance to the image's center.

    Args:
        logits: ``(h, w)``, log odds of an object.

    Returns:
        bool ``(h, w)``, one connected piece; everything where no level has one.
    """
    height, width = logits.shape
    side = min(height, width)
    settled = ndimage.gaussian_filter(np.asarray(logits, np.float64), _BLUR * side) - _MIDDLE_LEVEL
    probability = 1.0 / (1.0 + np.exp(-settled))
    ring_cells = max(1, round(_RING * side))
    best, chosen = 0.0, np.ones((height, width), bool)
    for piece in _pieces(settled):
        if piece.sum() < max(1.0, _MIN_CELLS * side * side):
            continue
        filled = ndimage.binary_fill_holes(piece)
        ring = ndimage.binary_dilation(filled, _EIGHT, iterations=ring_cells) & ~filled
        outside = probability[ring].mean() if ring.any() else probability.mean()
        rows, columns = np.nonzero(filled)
        aside = np.hypot((rows.mean() + 0.5) / height - 0.5, (columns.mean() + 0.5) / width - 0.5)
        nearness = np.exp(-0.5 * (aside / _CENTER_DEVIATION) ** 2)
        rating = (probability[filled].mean() - outside) * (filled.sum() / filled.size) ** _AREA_POWER * nearness
        if rating > best:
            best, chosen = rating, piece
    return chosen


def _pieces(values: npt.NDArray[np.float64]) -> Iterator[BoolArray]:
    """The connected pieces above every level that are not the whole map."""
    for level in _LEVELS:
        pieces, count = ndimage.label(values > level, _EIGHT)
        for number in range(1, count + 1):
            piece = np.asarray(pieces == number, bool)
            if not piece.all():
                yield piece
