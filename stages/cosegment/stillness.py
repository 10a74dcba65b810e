"""Parts of the foreground that stand still while the rest moves are background.

In one frame a salient rock beside a moving animal can pass for a part of it; over a second of video the animal
moves relative to the camera and the rock does not. The cue is used only where it can be trusted: the camera stands
still or drifts slowly, and the foreground as a whole moves. It is found on the first frames of a shot and then
carried along the optical flow, so that it stays with the rock while the camera drifts, and is dropped where
something passes in front.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from pipeline.core.arrays import FloatArray
from pipeline.core.grid import PatchGrid
from pipeline.core.state import State, grid_from_state, grid_state
from stages.cosegment.motion import flow_targets

BoolArray = npt.NDArray[np.bool_]

MOVED_PX = 0.5
"""Motion relative to the camera (pixels of the small frame, 240 high) that a still thing never shows."""

MAX_DRIFT_SHARE = 0.03
"""Of the frame's short side: how far the camera may have moved over the window."""

MIN_MOVING_SHARE = 0.3
"""Share of the foreground that must move before the rest of it counts as still."""

MIN_PATCH_SHARE = 0.02
"""Still patches smaller than this share of the foreground count as the uniform interior of a moving object."""


def find_still_cells(
    motions: Sequence[FloatArray | None], flows: Sequence[FloatArray | None], foreground: BoolArray
) -> BoolArray:
    """Foreground cells that never move relative to the camera over a window.

    Args:
        motions: float32 ``(h * w,)`` per frame, pixels; None for a shot's first frame.
        flows: float32 ``(H', W', 2)`` per frame, to the previous frame; None for a shot's first frame.
        foreground: bool ``(h, w)``, cells that are foreground in some frame of the window.

    Returns:
        bool ``(h, w)``: still patches of the foreground that reach its edge; none where the cue cannot be trusted.
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

    def __init__(self, cells: BoolArray, grid: PatchGrid, small_hw: tuple[int, int]) -> None:
        """Start with ``cells``, bool ``(h, w)`` on ``grid``; they are carried at the flow's size ``(H', W')``."""
        self._grid = grid
        self._map = _upsampled(np.asarray(cells, np.float32), grid, small_hw)

    def state(self) -> State:
        """All that later frames depend on."""
        return {"grid": grid_state(self._grid), "map": self._map}

    @classmethod
    def from_state(cls, state: State) -> StillRegion:
        """A region that continues from a :meth:`state`."""
        region = cls.__new__(cls)
        region._grid, region._map = grid_from_state(state["grid"]), state["map"]
        return region

    def cells(self) -> BoolArray:
        """The region on the grid, bool ``(h, w)``."""
        return np.asarray(self._grid.cell_means(self._map[None])[0] > 0.5, bool)

    def follow(self, flow: FloatArray | None, motion_px: FloatArray | None) -> BoolArray:
        """Carry the region one frame on; what moves now is not still any more.

        Args:
            flow: float32 ``(H', W', 2)`` to the previous frame.
            motion_px: float32 ``(h * w,)``, motion relative to the camera.

        Returns:
            bool ``(h, w)``, see :meth:`cells`.
        """
        if flow is not None and motion_px is not None:
            carried = cv2.remap(self._map, flow_targets(flow), None, cv2.INTER_LINEAR)
            moving = _upsampled(motion_px.reshape(self._grid.grid_hw), self._grid, (flow.shape[0], flow.shape[1]))
            self._map = np.where(moving < 2 * MOVED_PX, carried, 0.0).astype(np.float32)
        return self.cells()


def _upsampled(cells: FloatArray, grid: PatchGrid, size_hw: tuple[int, int]) -> FloatArray:
    return np.asarray(grid.upsample(torch.from_numpy(cells[None]), size_hw)[0].numpy(), np.float32)
