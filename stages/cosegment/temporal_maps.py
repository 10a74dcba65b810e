"""Soft labels averaged over time along the optical flow."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from pipeline.core.arrays import FloatArray, IntArray, normalize_rows
from pipeline.core.grid import PatchGrid
from pipeline.core.state import State
from stages.cosegment.motion import flow_targets
from stages.cosegment.observation import Observation

# Cosine of a cell to the one the flow says it came from, at which the past counts nothing and fully. Wrong
# foreground is worse than a wrong part, so it asks for more.
FOREGROUND_COSINE = (0.5, 0.8)
PART_COSINE = (0.1, 0.4)


class TemporalMaps:
    """Soft labels carried along the optical flow and blended with each frame's own.

    Nearest-centroid labels flicker where two parts are equally near. A recursive average along the flow settles
    them: a pixel keeps its label unless the evidence against it lasts. The past counts only as far as the
    descriptors agree that the flow is right, so that nothing trails behind a fast object.

    Invariant: channels belong to part numbers, so a refit that keeps numbers keeps their history. Call ``reset``
    at a cut.
    """

    def __init__(self, memory: float, part_memory: float) -> None:
        """Share of the past in the average, in [0, 1), for the foreground and for the parts in it."""
        self._memory = memory
        self._part_memory = part_memory
        self.reset()

    def reset(self) -> None:
        """Forget the past."""
        self._maps: dict[int, FloatArray] = {}
        self._rows: FloatArray | None = None

    def state(self) -> State:
        """All that later frames depend on."""
        return {"maps": [[number, values] for number, values in self._maps.items()], "rows": self._rows}

    def restore(self, state: State) -> None:
        """Continue from a :meth:`state`."""
        self._maps, self._rows = dict(state["maps"]), state["rows"]

    def blend(self, maps: FloatArray, numbers: IntArray, seen: Observation, grid: PatchGrid) -> FloatArray:
        """The average for this frame.

        Args:
            maps: float32 ``(P + 1, H', W')`` at the size of ``seen.gray``, background first.
            numbers: int64 ``(P,)``, the number of each further channel.
            seen: The frame, with its gray copy and the flow to the previous frame.
            grid: Where its cells lie.
        """
        keys = [0, *(int(number) for number in numbers)]
        if self._rows is not None and self._rows.shape == seen.rows.shape and seen.flow is not None:
            agreement = _agreement(seen.rows, self._rows, seen.flow, grid)
            maps = self._blended(maps, keys, seen.flow, agreement)
        self._maps, self._rows = dict(zip(keys, maps, strict=True)), seen.rows
        return maps

    def _blended(self, maps: FloatArray, keys: list[int], flow: FloatArray, agreement: FloatArray) -> FloatArray:
        where = flow_targets(flow)
        nothing = np.zeros_like(maps[0])
        past = np.stack([cv2.remap(self._maps.get(key, nothing), where, None, cv2.INTER_LINEAR) for key in keys])
        background = maps[0] + self._memory * _ramp(agreement, FOREGROUND_COSINE) * (past[0] - maps[0])
        # What is foreground may change quickly; which part it is, given that it is foreground, hardly ever does.
        # Weighted by how much foreground there was, so that new ground takes its part from the new frame.
        share = self._part_memory * _ramp(agreement, PART_COSINE)
        joint = (1.0 - share) * maps[1:] + share * past[1:]
        joint *= (1.0 - background) / np.maximum(joint.sum(axis=0), 1e-6)
        return np.concatenate([background[None], joint]).astype(np.float32)


def _agreement(rows: FloatArray, previous: FloatArray, flow: FloatArray, grid: PatchGrid) -> FloatArray:
    """Cosine of each cell to the one the flow says it came from, at the flow's size; -1 from outside."""
    height, width = grid.grid_hw
    image_hw = np.array(grid.image_hw, np.float32)
    cells_per_px = (image_hw / flow.shape[:2] / grid.stride_px)[::-1].astype(np.float32)
    moved = np.moveaxis(grid.cell_means(np.moveaxis(flow, 2, 0)), 0, 2) * cells_per_px
    y, x = np.mgrid[0:height, 0:width]
    column = np.rint(x + moved[..., 0]).astype(int).ravel()
    row = np.rint(y + moved[..., 1]).astype(int).ravel()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    source = previous[row.clip(0, height - 1) * width + column.clip(0, width - 1)]
    # What all cells share says nothing about which is which.
    center = previous.mean(axis=0)
    cosine = np.einsum("nc,nc->n", normalize_rows(rows - center), normalize_rows(source - center))
    cosine = np.where(inside, cosine, -1.0).astype(np.float32).reshape(1, height, width)
    flow_hw = (flow.shape[0], flow.shape[1])
    return np.asarray(grid.upsample(torch.from_numpy(cosine), flow_hw)[0].numpy(), np.float32)


def _ramp(values: FloatArray, limits: tuple[float, float]) -> FloatArray:
    """0 below the first limit, 1 above the second, linear between."""
    return np.asarray(np.clip((values - limits[0]) / (limits[1] - limits[0]), 0.0, 1.0), np.float32)
