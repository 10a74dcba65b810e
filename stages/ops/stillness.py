"""What never changes before a camera that stands still is no object.

A salient rock beside a moving animal looks like part of it in one frame; over a second of video its features stay
what they were while the animal's do not. The cue speaks only where it can be trusted: the camera stands still
(most of the background keeps its features) and the foreground as a whole does not (a scene in which nothing moves
says nothing).
"""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class StillCells:
    """Cells found still in a window, and what they looked like, to ask of later frames.

    Attributes:
        mask: bool ``(h, w)``, the still cells; all False where the cue says nothing.
        centre: float32 ``(C,)``, what all cells of the window share.
        looks: float32 ``(N, C)``, unit mean of each cell over the window, centred.
    """

    mask: BoolArray
    centre: FloatArray
    looks: FloatArray

    def now(self, rows: FloatArray) -> BoolArray:
        """The still cells that look in this frame, ``(N, C)``, as they did in the window: bool ``(h, w)``."""
        distance = 1.0 - np.einsum("nc,nc->n", _unit(rows - self.centre), self.looks)
        return np.asarray(self.mask & (distance.reshape(self.mask.shape) < 2 * CHANGE), dtype=bool)


def find_still_cells(rows: FloatArray, foreground: BoolArray) -> StillCells:
    """Foreground cells whose descriptors never change over a window, before a standing camera.

    Args:
        rows: float32 ``(T, N, C)``, descriptors of T frames on one grid, any scale; T of 8 or more.
        foreground: bool ``(h, w)`` with ``h * w = N``: what is foreground somewhere in the window.

    Returns:
        Still patches of the foreground that reach its edge.

    >>> rows = np.random.default_rng(0).normal(size=(8, 16, 3)).astype(np.float32)
    >>> bool(find_still_cells(np.repeat(rows[:1], 8, axis=0), np.ones((4, 4), bool)).mask.any())
    False
    """
    centre = np.asarray(rows.mean(axis=(0, 1)), np.float32)
    unit = _unit(rows - centre)
    looks = _unit(unit.mean(axis=0))
    change = 1.0 - np.einsum("tnc,nc->tn", unit, looks).min(axis=0)
    return StillCells(_still_patches(change.reshape(foreground.shape), foreground), centre, looks)


def _still_patches(change: FloatArray, foreground: BoolArray) -> BoolArray:
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


def _unit(rows: FloatArray) -> FloatArray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12), np.float32)
