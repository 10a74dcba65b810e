"""From a codebook to the part map of a frame, and the numbers that parts keep for ever."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from pipeline.records import PartMap, PatchGrid
from stages.ops.codebook import Codebook
from stages.ops.crf import dense_crf
from stages.ops.guided import guided_filter
from stages.ops.kmeans import FloatArray, IntArray, match_centroids, squared_distances

Refinement = Literal["guided", "crf", "none"]

MAX_PARTS = 255
# Log odds for a difference of 1 in squared distance, to bring the foreground's odds into the CRF's energies.
_ODDS_PER_DISTANCE = 20.0
_EIGHT = np.ones((3, 3), bool)


class PartNumbers:
    """Gives parts their numbers and remembers what each number looks like.

    Invariant: a number means one part; a part that comes back after a refit, however late, gets its number back.
    Numbers go up to 255, the most an indexed image holds; after that the one unseen for longest is used again.
    """

    def __init__(self, match_distance: float) -> None:
        """Parts nearer than this squared distance are the same part."""
        self.current: IntArray = np.zeros(0, np.int64)
        self.exhausted = False
        self._match_distance = match_distance
        self._known: dict[int, FloatArray] = {}

    @property
    def highest(self) -> int:
        """The largest number given so far; 0 before the first."""
        return max(self._known, default=0)

    def assign(self, parts: FloatArray) -> int:
        """Number the parts of a new fit; sets ``current`` and returns how many were known already."""
        old = list(self._known)
        numbers = np.full(len(parts), -1, np.int64)
        if old and len(parts):
            known = np.stack([self._known[number] for number in old])
            matched = match_centroids(known, parts, max_distance=self._match_distance)
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


def make_part_map(
    image: npt.NDArray[np.uint8],
    grid: PatchGrid,
    rows: FloatArray,
    codebook: Codebook,
    numbers: IntArray,
    *,
    num_parts: int,
    refine: Refinement,
    min_component_share: float,
) -> PartMap:
    """The parts of one frame.

    Args:
        image: uint8 ``(H, W, 3)``.
        grid: Where the cells lie.
        rows: float32 ``(h * w, C)``, unit descriptors.
        codebook: Of the frame's shot.
        numbers: int64 ``(P,)``, the number of each of the codebook's parts.
        num_parts: Largest number given so far.
        refine: How the cells' labels become pixels'.
        min_component_share: Connected pieces of foreground smaller than this share of the largest are dropped.
    """
    if codebook.is_empty:
        nothing = np.zeros(grid.grid_hw, np.uint8)
        return PartMap(nothing, num_parts, np.zeros(image.shape[:2], np.uint8), nothing.astype(np.float32))
    logits = np.clip(codebook.logits(rows), -30.0, 30.0).reshape(grid.grid_hw)
    logits = np.where(_speckles(logits > 0, min_component_share), -np.abs(logits) - 1.0, logits)
    foreground = np.asarray(1.0 / (1.0 + np.exp(-logits)), np.float32)
    distances = squared_distances(rows, codebook.parts).T.reshape(-1, *grid.grid_hw)
    part_ids = np.where(logits > 0, numbers[distances.argmin(axis=0)], 0).astype(np.uint8)
    if refine == "crf":
        index_mask = _crf_labels(image, grid, distances, logits, numbers)
    else:
        index_mask = _soft_labels(image, grid, distances, foreground, numbers, guided=refine == "guided")
    return PartMap(part_ids, num_parts, index_mask, foreground)


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
    image: npt.NDArray[np.uint8],
    grid: PatchGrid,
    distances: FloatArray,
    foreground: FloatArray,
    numbers: IntArray,
    *,
    guided: bool,
) -> npt.NDArray[np.uint8]:
    """Foreground and nearest part at every pixel from interpolated cell values."""
    soft = grid.upsample(torch.from_numpy(foreground[None]))[0].numpy()
    if guided:
        radius = max(1, round(max(grid.stride_px) / 2))
        soft = guided_filter(image, soft[None], radius_px=radius)[0]
    nearest = grid.upsample(torch.from_numpy(np.ascontiguousarray(distances))).argmin(dim=0).numpy()
    return np.where(soft >= 0.5, numbers[nearest], 0).astype(np.uint8)


def _crf_labels(
    image: npt.NDArray[np.uint8], grid: PatchGrid, distances: FloatArray, logits: FloatArray, numbers: IntArray
) -> npt.NDArray[np.uint8]:
    """Labels of a dense CRF whose background energy lies below the best part's by the odds against it."""
    background = distances.min(axis=0) + logits / _ODDS_PER_DISTANCE
    energy = np.concatenate([distances, background[None]]).astype(np.float32)
    energy -= energy.max(axis=0, keepdims=True)
    labels = dense_crf(grid.upsample(torch.from_numpy(energy)).numpy(), image).argmax(axis=0)
    return np.asarray(np.append(numbers, 0)[labels], np.uint8)
