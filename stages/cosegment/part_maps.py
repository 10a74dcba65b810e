"""From a codebook to the part map of a frame."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from pipeline.core.arrays import FloatArray, IntArray
from pipeline.core.grid import PatchGrid
from pipeline.core.guided_filter import fast_guided_filter
from pipeline.core.kmeans import squared_distances
from pipeline.core.records import PartMap
from stages.cosegment.codebook import Codebook
from stages.cosegment.crf import dense_crf
from stages.cosegment.observation import LabelCells, Observation
from stages.cosegment.temporal_maps import TemporalMaps

Refinement = Literal["guided", "crf", "none"]

# Log odds for a difference of 1 in squared distance between unit descriptors.
_ODDS_PER_DISTANCE = 20.0
PART_ODDS = 5.0
# The log odds of a cell are clipped to this, so that its label can change within a few frames.
MAX_LOGIT = 4.0
PART_BLUR_PATCHES = 2.0
# How far an outline may be from the true edge, in distances of the backbone's cells.
_EDGE_REACH_PATCHES = 1.0
_EIGHT = np.ones((3, 3), bool)


def _settled(distances: FloatArray, foreground: FloatArray, blur_cells: float) -> FloatArray:
    """Distances ``(P, h, w)`` averaged over the neighboring foreground, so that single cells do not stand out."""
    weight = np.asarray(foreground + 1e-3, np.float32)
    total = cv2.GaussianBlur(weight, (0, 0), blur_cells)
    return np.stack([cv2.GaussianBlur(d * weight, (0, 0), blur_cells) / total for d in distances])


def make_part_map(
    image: npt.NDArray[np.uint8],
    grid: PatchGrid,
    seen: Observation,
    cells: LabelCells,
    codebook: Codebook,
    numbers: IntArray,
    memory: TemporalMaps,
    *,
    num_parts: int,
    refine: Refinement,
    min_component_share: float,
    part_ids: bool = False,
    background: npt.NDArray[np.bool_] | None = None,
) -> PartMap:
    """The parts of one frame.

    Args:
        image: uint8 ``(H, W, 3)``.
        grid: The backbone's, on which the evidence lies.
        seen: The frame's descriptors on it, its gray copy and flow.
        cells: The cells that are labeled, finer with LiFT.
        codebook: Of the frame's shot; not empty.
        numbers: int64 ``(P,)``, the number of each of the codebook's parts.
        memory: Of the previous frames.
        num_parts: Largest number assigned so far.
        refine: How labels of cells become labels of pixels.
        min_component_share: Connected pieces of foreground smaller than this share of the largest are dropped.
        part_ids: Also make :attr:`PartMap.part_ids`.
        background: bool ``(h, w)``, cells known to be background whatever their descriptors.
    """
    logits = np.clip(codebook.logits(cells.rows), -MAX_LOGIT, MAX_LOGIT).reshape(cells.grid.grid_hw)
    if background is not None:
        logits = np.where(np.kron(background, np.ones((cells.factor,) * 2, bool)), -MAX_LOGIT, logits)
    logits = np.where(_speckles(logits > 0, min_component_share), -MAX_LOGIT, logits)
    distances = squared_distances(cells.part_rows, codebook.parts).T.reshape(-1, *cells.grid.grid_hw)
    small_hw = seen.gray.shape if seen.gray is not None else grid.grid_hw
    on_cells = torch.from_numpy(_soft_parts(logits, distances, PART_BLUR_PATCHES * cells.factor))
    soft: FloatArray = cells.grid.upsample(on_cells, small_hw).numpy()
    soft = memory.blend(soft, numbers, seen, grid)
    foreground = grid.cell_means(1.0 - soft[:1])[0]
    if refine == "crf":
        index_mask = _crf_labels(image, soft, numbers)
    else:
        index_mask = _soft_labels(image, grid, soft, numbers, guided=refine == "guided")
    cell_parts = _cell_parts(grid, soft, foreground, numbers) if part_ids else None
    return PartMap(cell_parts, num_parts, index_mask, np.clip(foreground, 0.0, 1.0).astype(np.float32))


def no_parts(
    image_hw: tuple[int, int], grid_hw: tuple[int, int], num_parts: int, *, part_ids: bool = False
) -> PartMap:
    """The part map of a frame without foreground; see :func:`make_part_map`."""
    nothing = np.zeros(grid_hw, np.uint8)
    empty = np.zeros(image_hw, np.uint8)
    return PartMap(nothing if part_ids else None, num_parts, empty, nothing.astype(np.float32))


def _cell_parts(
    grid: PatchGrid, soft: FloatArray, foreground: FloatArray, numbers: IntArray
) -> npt.NDArray[np.uint8]:
    """The number of each cell's likeliest part, uint8 ``(h, w)``; 0 is background."""
    likeliest = grid.cell_means(soft[1:]).argmax(axis=0)
    return np.where(foreground >= 0.5, numbers[likeliest], 0).astype(np.uint8)


def _soft_parts(logits: FloatArray, distances: FloatArray, blur_cells: float) -> FloatArray:
    """Probabilities ``(P + 1, h, w)`` of background and each part; they sum to 1."""
    foreground = np.asarray(1.0 / (1.0 + np.exp(-logits)), np.float32)
    distances = _settled(distances, foreground, blur_cells)
    nearness = np.exp(-PART_ODDS * (distances - distances.min(axis=0)))
    parts = foreground * nearness / nearness.sum(axis=0)
    return np.concatenate([1.0 - foreground[None], parts]).astype(np.float32)


def _speckles(mask: npt.NDArray[np.bool_], min_share: float) -> npt.NDArray[np.bool_]:
    """Cells of foreground pieces that are too small next to the largest."""
    pieces, count = ndimage.label(mask, structure=_EIGHT)
    if count < 2 or min_share <= 0:
        return np.zeros(mask.shape, bool)
    areas = np.bincount(pieces.ravel())
    areas[0] = 0
    small = areas < min_share * areas.max()
    small[0] = False
    return np.asarray(small[pieces], bool)


def edge_reach_px(grid: PatchGrid) -> int:
    """How far from an outline its true edge is looked for, in pixels of the frame."""
    return max(1, round(_EDGE_REACH_PATCHES * max(grid.stride_px)))


def _soft_labels(
    image: npt.NDArray[np.uint8], grid: PatchGrid, soft: FloatArray, numbers: IntArray, *, guided: bool
) -> npt.NDArray[np.uint8]:
    """Foreground and likeliest part at every pixel."""
    size = image.shape[1::-1]
    foreground = np.asarray(1.0 - soft[0], np.float32)
    if guided:
        radius = edge_reach_px(grid)
        foreground = fast_guided_filter(image, foreground[None], radius_px=radius)[0]
    inside = cv2.compare(cv2.resize(foreground, size, interpolation=cv2.INTER_LINEAR), 0.5, cv2.CMP_GE)
    best = np.asarray(numbers[soft[1:].argmax(axis=0)], np.uint8)
    labels = cv2.resize(best, size, interpolation=cv2.INTER_NEAREST)
    return np.asarray(cv2.copyTo(labels, inside), np.uint8)


def _crf_labels(image: npt.NDArray[np.uint8], soft: FloatArray, numbers: IntArray) -> npt.NDArray[np.uint8]:
    """Labels of a dense CRF on the log probabilities, scaled to the squared distances its weights are made for."""
    energy = np.stack([cv2.resize(m, image.shape[1::-1], interpolation=cv2.INTER_LINEAR) for m in soft])
    energy = -np.log(np.clip(energy, 1e-6, 1.0)) / _ODDS_PER_DISTANCE
    labels = dense_crf(np.asarray(energy, np.float32), image).argmax(axis=0)
    return np.asarray(np.concatenate([[0], numbers])[labels], np.uint8)
