"""What never moves while everything around it does is no object.

A salient rock beside a moving animal looks like part of it in one frame; over a second of video the animal moves
against the camera and the rock does not. The cue speaks only where it can be trusted: the camera stands still or
drifts slowly, and the foreground as a whole moves (a scene in which nothing moves says nothing). It is found on
the first frames of a shot and then carried along the optical flow, so that it stays with the rock while the camera
drifts, and is lost where something passes in front.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

MOVED_PX = 0.5
"""Motion against the camera (pixels of the small frame, 240 high) that a still thing never shows."""

MAX_DRIFT_SHARE = 0.03
"""Of the frame's short side: how far the camera may have moved over the window."""

MIN_MOVING_SHARE = 0.3
"""Share of the foreground that must move for the rest of it to be called still."""

MIN_PATCH_SHARE = 0.02
"""Still patches smaller than this share of the foreground are a moving object's calm middle."""


def find_still_cells(
    motions: Sequence[FloatArray | None], flows: Sequence[FloatArray | None], foreground: BoolArray
) -> BoolArray:
    """Foreground cells that never move against the camera over a window.

    Args:
        motions: float32 ``(h * w,)`` a frame, pixels; None for a shot's first frame.
        flows: float32 ``(H', W', 2)`` a frame, to the frame before; None for a shot's first frame.
        foreground: bool ``(h, w)``, what is foreground somewhere in the window.

    Returns:
        bool ``(h, w)``: still patches of the foreground that reach its edge; none where the cue says nothing.
    """
    nothing = np.zeros(foreground.shape, bool)
    known = [motion for motion in motions if motion is not None]
    drifts = [flow for flow in flows if flow is not None]
    if not known or not drifts or not foreground.any() or foreground.all():
        return nothing
    drift_px = float(np.linalg.norm(sum(np.median(flow, axis=(0, 1)) for flow in drifts)))
    if drift_px > MAX_DRIFT_SHARE * min(drifts[0].shape[:2]):
        return nothing
    most = np.max(known, axis=0).reshape(foreground.shape)
    if float(np.median(most[~foreground])) >= MOVED_PX or np.mean(most[foreground] >= MOVED_PX) < MIN_MOVING_SHARE:
        return nothing
    return _patches_at_the_edge(foreground & (most < MOVED_PX), foreground)


def _patches_at_the_edge(still: BoolArray, foreground: BoolArray) -> BoolArray:
    patches, count = ndimage.label(still)
    edge = ndimage.binary_dilation(~foreground)
    for label in range(1, count + 1):
        patch = patches == label
        if patch.sum() < MIN_PATCH_SHARE * foreground.sum() or not (patch & edge).any():
            still = still & ~patch
    return np.asarray(still, bool)


class StillRegion:
    """Still cells, carried from frame to frame."""

    def __init__(self, cells: BoolArray, small_hw: tuple[int, int]) -> None:
        """Start with ``cells``, bool ``(h, w)``, and carry them at the size of the flow, ``(H', W')``."""
        self._grid_hw = cells.shape
        self._map = cv2.resize(cells.astype(np.float32), small_hw[::-1], interpolation=cv2.INTER_LINEAR)

    def cells(self) -> BoolArray:
        """The region on the grid, bool ``(h, w)``."""
        height, width = self._grid_hw
        return np.asarray(cv2.resize(self._map, (width, height), interpolation=cv2.INTER_AREA) > 0.5, bool)

    def follow(self, flow: FloatArray | None, motion_px: FloatArray | None) -> BoolArray:
        """Carry the region one frame on; what moves now is not still any more.

        Args:
            flow: float32 ``(H', W', 2)`` to the frame before.
            motion_px: float32 ``(h * w,)``, motion against the camera.

        Returns:
            bool ``(h, w)``, see :meth:`cells`.
        """
        if flow is not None and motion_px is not None:
            y, x = np.mgrid[0 : flow.shape[0], 0 : flow.shape[1]].astype(np.float32)
            carried = cv2.remap(self._map, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR)
            moving = cv2.resize(
                motion_px.reshape(self._grid_hw), flow.shape[1::-1], interpolation=cv2.INTER_LINEAR
            )
            self._map = np.where(moving < 2 * MOVED_PX, carried, 0.0).astype(np.float32)
        return self.cells()
