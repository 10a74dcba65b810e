"""What never changes before a camera that stands still is no object.

A salient rock beside a moving animal looks like part of it in one frame; over a second of video its features stay
what they were while the animal's do not. The cue speaks only where it can be trusted: the camera stands still
(most of the background keeps its features) and the foreground as a whole does not (a scene in which nothing moves
says nothing).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

CHANGE = 0.05
"""Cosine distance to the window's mean above which a cell has changed; compression noise stays below 0.03."""

MIN_MOVING_SHARE = 0.3
"""Share of the foreground that must change for the rest of it to be called still."""

MIN_STILL_CELLS = 6
"""Smaller still patches inside the foreground are a moving object's calm middle."""


def still_cells(rows: FloatArray, foreground: BoolArray) -> BoolArray:
    """Foreground cells whose descriptors never change over a window, before a standing camera.

    Args:
        rows: float32 ``(T, N, C)``, descriptors of T frames on one grid, any scale; T of 8 or more says something.
        foreground: bool ``(h, w)`` with ``h * w = N``: what is taken for foreground in the window's first frame.

    Returns:
        bool ``(h, w)``: still patches of the foreground that reach its edge; all False where the cue says nothing.

    >>> rows = np.random.default_rng(0).normal(size=(8, 16, 3)).astype(np.float32)
    >>> still_cells(np.repeat(rows[:1], 8, axis=0), np.ones((4, 4), bool)).any()
    np.False_
    """
    change = _change(rows).reshape(foreground.shape)
    nothing = np.zeros(foreground.shape, bool)
    background = ~foreground
    if not foreground.any() or not background.any() or float(np.median(change[background])) >= CHANGE:
        return nothing
    if float(np.mean(change[foreground] >= CHANGE)) < MIN_MOVING_SHARE:
        return nothing
    # A cell beside one that moves is likely its border: its own patch sees only part of the motion.
    moving = ndimage.binary_dilation(change >= 2 * CHANGE) | (change >= CHANGE)
    still = foreground & ~moving
    patches, count = ndimage.label(still)
    at_the_edge = ndimage.binary_dilation(background)
    for label in range(1, count + 1):
        patch = patches == label
        if patch.sum() < MIN_STILL_CELLS or not (patch & at_the_edge).any():
            still[patch] = False
    return np.asarray(still, dtype=bool)


def _change(rows: FloatArray) -> FloatArray:
    """Largest cosine distance of each cell to its own mean over the window, float32 ``(N,)``.

    What all cells of all frames share is taken out first: it makes everything look alike.
    """
    centred = rows - rows.mean(axis=(0, 1), keepdims=True)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-12)
    mean = unit.mean(axis=0)
    mean /= np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)
    return np.asarray(1.0 - np.einsum("tnc,nc->tn", unit, mean).min(axis=0), np.float32)
