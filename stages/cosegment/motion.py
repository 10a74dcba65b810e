"""Motion relative to the camera, and how much a frame has in common with the previous one."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import FloatArray, normalize_rows
from pipeline.core.grid import PatchGrid
from pipeline.core.resizing import shrunk, shrunk_by_whole_factor

_SHORT_SIDE_PX = 240
_SAMPLE_PX = 8
_RANSAC_PX = 1.0


def small_gray(image: npt.NDArray[np.uint8], short_side_px: int = _SHORT_SIDE_PX) -> npt.NDArray[np.uint8]:
    """A gray copy of an RGB frame whose short side is at most ``short_side_px``."""
    scale = min(1.0, short_side_px / min(image.shape[:2]))
    size = (max(16, round(image.shape[0] * scale)), max(16, round(image.shape[1] * scale)))
    gray = cv2.cvtColor(shrunk_by_whole_factor(image, 3 * short_side_px // 2), cv2.COLOR_RGB2GRAY)
    return shrunk(np.asarray(gray, np.uint8), size)


def dense_flow(gray: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> FloatArray:
    """Dense flow from ``gray`` to ``other`` (DIS, Kroeger et al. 2016), float32 ``(H, W, 2)`` as (x, y)."""
    return np.asarray(
        cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(gray, other, None), np.float32
    )


def flow_targets(flow: FloatArray) -> FloatArray:
    """Where the flow leads from every pixel, float32 ``(H, W, 2)`` as (x, y)."""
    return np.asarray(_pixel_positions(*flow.shape[:2]) + flow, np.float32)


@lru_cache(maxsize=2)
def _pixel_positions(height: int, width: int) -> FloatArray:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return np.stack([x, y], axis=-1)


def object_motion(flow: FloatArray, grid: PatchGrid) -> FloatArray:
    """How far each cell moves beyond the camera's motion, in pixels of the small frame.

    The camera's part of the flow is the homography that most of it agrees with (RANSAC).

    Args:
        flow: float32 ``(H, W, 2)``, see :func:`dense_flow`.
        grid: The cells of the result.

    Returns:
        float32 ``(h, w)``, at least 0; zeros where no camera motion could be found.
    """
    height, width = flow.shape[:2]
    start, end = _pixel_positions(height, width), flow_targets(flow)
    step = slice(_SAMPLE_PX // 2, None, _SAMPLE_PX)
    points, moved = start[step, step].reshape(-1, 2), end[step, step].reshape(-1, 2)
    cv2.setRNGSeed(0)
    camera = cv2.findHomography(points, moved, cv2.RANSAC, _RANSAC_PX)[0] if len(points) >= 8 else None
    if camera is None:
        return np.zeros(grid.grid_hw, np.float32)
    expected = cv2.perspectiveTransform(start.reshape(1, -1, 2), camera).reshape(height, width, 2)
    across, down = cv2.split(end - expected)
    residual = np.asarray(cv2.magnitude(across, down), np.float32)
    means: FloatArray = grid.cell_means(residual[None])[0]
    return means


def moving_evidence(motion_px: FloatArray) -> FloatArray:
    """Motion as evidence in [0, 1): half at one pixel plus twice the frame's median residual.

    >>> moving_evidence(np.array([0.0, 0.0, 0.0, 1.0, 100.0], np.float32)).round(2).tolist()
    [0.0, 0.0, 0.0, 0.5, 1.0]
    """
    squared = np.square(motion_px, dtype=np.float32)
    return np.asarray(squared / (squared + (1.0 + 2.0 * np.median(motion_px)) ** 2), np.float32)


def continuity(rows: FloatArray, previous: FloatArray, step: int = 4) -> float:
    """Mean cosine of each ``step``-th cell to the most similar cell of the previous frame, both centered.

    Above 0.8 within a shot, whatever moves; below 0.75 at a cut. Centered by the previous frame's mean, because
    ViT keys have a large common part without information; weighted by what is left, so that the noise of a uniform
    background does not count.

    Args:
        rows: float32 ``(N, C)``, L2-normalized.
        previous: The same of the previous frame.
        step: Every how many cells are compared.
    """
    center = previous.mean(axis=0)
    here = rows[::step] - center
    weight = np.square(here).sum(axis=1)
    best = (normalize_rows(here) @ normalize_rows(previous - center).T).max(axis=1)
    total = float(weight.sum())
    return float((best * weight).sum()) / total if total > 1e-9 else 1.0
