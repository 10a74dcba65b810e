"""From a codebook to the part map of a frame, and the numbers that parts keep for ever."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from pipeline.core.arrays import FloatArray, IntArray, normalize_rows
from pipeline.core.kmeans import match_centroids, squared_distances
from pipeline.core.records import PartMap, PatchGrid
from stages.cosegment.codebook import Codebook, Observation
from stages.cosegment.crf import dense_crf
from stages.cosegment.guided import guided_filter

Refinement = Literal["guided", "crf", "none"]

MAX_PARTS = 255
# Log odds for a difference of 1 in squared distance between unit descriptors.
_ODDS_PER_DISTANCE = 20.0
_PART_ODDS = 5.0
# No cell is surer than this log odds: it has to be able to change its mind within a few frames.
_SURE = 4.0
# Cosine of a cell to where the flow says it came from, from which the past counts nothing and fully. Wrong
# foreground is worse than a wrong part, so it asks for more.
_FOREGROUND_COSINE = (0.5, 0.8)
_PART_COSINE = (0.1, 0.4)
_PART_BLUR_CELLS = 2.0
_EIGHT = np.ones((3, 3), bool)


class PartNumbers:
    """Gives parts their numbers and remembers what each number looks like.

    Invariant: a number means one part; a part that comes back after a refit, however late, gets its number back.
    Numbers go up to 255, the most an indexed image holds; after that the one unseen for longest is used again.
    """

    def __init__(self, match_distance: float) -> None:
        """Parts nearer than this squared distance, in multiples of the scene's spread, are the same part."""
        self.current: IntArray = np.zeros(0, np.int64)
        self.exhausted = False
        self._match_distance = match_distance
        self._known: dict[int, FloatArray] = {}

    @property
    def highest(self) -> int:
        """The largest number given so far; 0 before the first."""
        return max(self._known, default=0)

    def assign(self, parts: FloatArray, spread: float = 1.0) -> int:
        """Number the parts of a new fit; sets ``current`` and returns how many were known already.

        Args:
            parts: float32 ``(P, C)``.
            spread: Mean squared distance of the scene's descriptors to their mean.
        """
        old = list(self._known)
        numbers = np.full(len(parts), -1, np.int64)
        if old and len(parts):
            known = np.stack([self._known[number] for number in old])
            matched = match_centroids(known, parts, max_distance=self._match_distance * spread)
            numbers = np.array([old[row] if row >= 0 else -1 for row in matched], np.int64)
        kept = int((numbers >= 0).sum())
        for place in np.flatnonzero(numbers < 0):
            numbers[place] = self._fresh({int(n) for n in numbers if n > 0})
            self._known[int(numbers[place])] = parts[place]
        self.current = numbers
        self.follow(parts)
        return kept

    def follow(self, parts: FloatArray) -> None:
        """Remember what the current parts look like now."""
        for number, centroid in zip(self.current, parts, strict=True):
            self._known.pop(int(number), None)  # so that the dictionary's order is that of use
            self._known[int(number)] = centroid

    def _fresh(self, taken: set[int]) -> int:
        if len(self._known) < MAX_PARTS:
            return self.highest + 1
        self.exhausted = True
        oldest = next(number for number in self._known if number not in taken)
        del self._known[oldest]
        return oldest


class TemporalMaps:
    """Soft labels carried along the optical flow and blended with each frame's own.

    Nearest-centroid labels flicker where two parts are equally near. A recursive average along the flow settles
    them: a pixel keeps what it was unless the evidence goes on against it. The past counts only as far as the
    descriptors agree that the flow is right, so that nothing trails behind a fast object.

    Invariant: channels belong to part numbers, so a refit that keeps numbers keeps their history. Call ``reset``
    at a cut.
    """

    def __init__(self, memory: float, part_memory: float) -> None:
        """Share of the past in the average, in [0, 1), for the foreground and for the parts in it."""
        self._memory = memory
        self._part_memory = part_memory
        self._maps: dict[int, FloatArray] = {}
        self._rows: FloatArray | None = None

    def reset(self) -> None:
        """Forget the past."""
        self._maps, self._rows = {}, None

    def blend(self, maps: FloatArray, numbers: IntArray, seen: Observation, grid: PatchGrid) -> FloatArray:
        """The average for this frame.

        Args:
            maps: float32 ``(P + 1, H', W')`` at the size of ``seen.gray``, background first.
            numbers: int64 ``(P,)``, the number of each further channel.
            seen: The frame, with its grey copy and the flow to the frame before.
            grid: Where its cells lie.
        """
        keys = [0, *(int(number) for number in numbers)]
        if self._rows is not None and self._rows.shape == seen.rows.shape and seen.flow is not None:
            agreement = _agreement(seen.rows, self._rows, seen.flow, grid.grid_hw)
            maps = self._blended(maps, keys, seen.flow, agreement)
        self._maps, self._rows = dict(zip(keys, maps, strict=True)), seen.rows
        return maps

    def _blended(self, maps: FloatArray, keys: list[int], flow: FloatArray, agreement: FloatArray) -> FloatArray:
        height, width = flow.shape[:2]
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        where = x + flow[..., 0], y + flow[..., 1]
        nothing = np.zeros_like(maps[0])
        past = np.stack([cv2.remap(self._maps.get(key, nothing), *where, cv2.INTER_LINEAR) for key in keys])
        background = maps[0] + self._memory * _ramp(agreement, _FOREGROUND_COSINE) * (past[0] - maps[0])
        # What is foreground may change quickly; which part it is, given that it is foreground, hardly ever does.
        # Weighted by how much foreground there was, so that new ground takes its part from the new frame.
        share = self._part_memory * _ramp(agreement, _PART_COSINE)
        joint = (1.0 - share) * maps[1:] + share * past[1:]
        joint *= (1.0 - background) / np.maximum(joint.sum(axis=0), 1e-6)
        return np.concatenate([background[None], joint]).astype(np.float32)


def _agreement(rows: FloatArray, before: FloatArray, flow: FloatArray, grid_hw: tuple[int, int]) -> FloatArray:
    """Cosine of each cell to the one the flow says it came from, at the flow's size; -1 from outside."""
    height, width = grid_hw
    scale = np.array([width / flow.shape[1], height / flow.shape[0]], np.float32)
    cells = cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) * scale
    y, x = np.mgrid[0:height, 0:width]
    column = np.rint(x + cells[..., 0]).astype(int).ravel()
    row = np.rint(y + cells[..., 1]).astype(int).ravel()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    source = before[row.clip(0, height - 1) * width + column.clip(0, width - 1)]
    # What all cells share says nothing about which is which.
    center = before.mean(axis=0)
    cosine = np.einsum("nc,nc->n", normalize_rows(rows - center), normalize_rows(source - center))
    cosine = np.where(inside, cosine, -1.0).astype(np.float32).reshape(grid_hw)
    return np.asarray(cv2.resize(cosine, flow.shape[1::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def _ramp(values: FloatArray, limits: tuple[float, float]) -> FloatArray:
    """0 below the first limit, 1 above the second, linear between."""
    return np.asarray(np.clip((values - limits[0]) / (limits[1] - limits[0]), 0.0, 1.0), np.float32)


def _settled(distances: FloatArray, foreground: FloatArray) -> FloatArray:
    """Distances ``(P, h, w)`` averaged over the neighbouring foreground, so that single cells do not stand out."""
    weight = np.asarray(foreground + 1e-3, np.float32)
    total = cv2.GaussianBlur(weight, (0, 0), _PART_BLUR_CELLS)
    return np.stack([cv2.GaussianBlur(d * weight, (0, 0), _PART_BLUR_CELLS) / total for d in distances])


def make_part_map(
    image: npt.NDArray[np.uint8],
    grid: PatchGrid,
    seen: Observation,
    codebook: Codebook,
    numbers: IntArray,
    memory: TemporalMaps,
    *,
    num_parts: int,
    refine: Refinement,
    min_component_share: float,
    background: npt.NDArray[np.bool_] | None = None,
) -> PartMap:
    """The parts of one frame.

    Args:
        image: uint8 ``(H, W, 3)``.
        grid: Where the cells lie.
        seen: The frame's descriptors, its grey copy and flow.
        codebook: Of the frame's shot.
        numbers: int64 ``(P,)``, the number of each of the codebook's parts.
        memory: Of the frames before.
        num_parts: Largest number given so far.
        refine: How the cells' labels become pixels'.
        min_component_share: Connected pieces of foreground smaller than this share of the largest are dropped.
        background: bool ``(h, w)``, cells known to be background whatever they look like.
    """
    if codebook.is_empty:
        memory.reset()
        nothing = np.zeros(grid.grid_hw, np.uint8)
        return PartMap(nothing, num_parts, np.zeros(image.shape[:2], np.uint8), nothing.astype(np.float32))
    logits = np.clip(codebook.logits(seen.rows), -_SURE, _SURE).reshape(grid.grid_hw)
    if background is not None:
        logits = np.where(background, -_SURE, logits)
    logits = np.where(_speckles(logits > 0, min_component_share), -_SURE, logits)
    distances = squared_distances(seen.rows, codebook.parts).T.reshape(-1, *grid.grid_hw)
    small_hw = seen.gray.shape if seen.gray is not None else grid.grid_hw
    soft = grid.upsample(torch.from_numpy(_soft_parts(logits, distances)), small_hw).numpy()
    soft = memory.blend(soft, numbers, seen, grid)
    foreground = np.asarray(1.0 - soft[0], np.float32)
    cells = cv2.resize(foreground, grid.grid_hw[::-1], interpolation=cv2.INTER_AREA)
    parts = np.stack([cv2.resize(m, grid.grid_hw[::-1], interpolation=cv2.INTER_AREA) for m in soft[1:]])
    part_ids = np.where(cells >= 0.5, numbers[parts.argmax(axis=0)], 0).astype(np.uint8)
    if refine == "crf":
        index_mask = _crf_labels(image, soft, numbers)
    else:
        index_mask = _soft_labels(image, grid, soft, numbers, guided=refine == "guided")
    return PartMap(part_ids, num_parts, index_mask, np.clip(cells, 0.0, 1.0).astype(np.float32))


def _soft_parts(logits: FloatArray, distances: FloatArray) -> FloatArray:
    """Probabilities ``(P + 1, h, w)`` of background and each part; they sum to 1."""
    foreground = np.asarray(1.0 / (1.0 + np.exp(-logits)), np.float32)
    distances = _settled(distances, foreground)
    nearness = np.exp(-_PART_ODDS * (distances - distances.min(axis=0)))
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


def _soft_labels(
    image: npt.NDArray[np.uint8], grid: PatchGrid, soft: FloatArray, numbers: IntArray, *, guided: bool
) -> npt.NDArray[np.uint8]:
    """Foreground and likeliest part at every pixel."""
    size = image.shape[1::-1]
    foreground = np.asarray(1.0 - soft[0], np.float32)
    if guided:
        radius = max(1, round(max(grid.stride_px) / 2))
        foreground = guided_filter(image, foreground[None], radius_px=radius)[0]
    inside = cv2.resize(foreground, size, interpolation=cv2.INTER_LINEAR) >= 0.5
    best = np.asarray(numbers[soft[1:].argmax(axis=0)], np.uint8)
    return np.where(inside, cv2.resize(best, size, interpolation=cv2.INTER_NEAREST), 0).astype(np.uint8)


def _crf_labels(image: npt.NDArray[np.uint8], soft: FloatArray, numbers: IntArray) -> npt.NDArray[np.uint8]:
    """Labels of a dense CRF on the log probabilities, scaled to the squared distances its weights are made for."""
    energy = np.stack([cv2.resize(m, image.shape[1::-1], interpolation=cv2.INTER_LINEAR) for m in soft])
    energy = -np.log(np.clip(energy, 1e-6, 1.0)) / _ODDS_PER_DISTANCE
    labels = dense_crf(np.asarray(energy, np.float32), image).argmax(axis=0)
    return np.asarray(np.concatenate([[0], numbers])[labels], np.uint8)
