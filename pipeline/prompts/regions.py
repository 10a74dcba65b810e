"""Candidate regions around a click or in a box, and how much each looks like an object.

Growing from a click, a threshold on similarity (or on the shortest path through similar cells) gives nested
regions; one of them is the object. It is the one whose cells differ most, on average, from the ring around it,
with a compact outline. This contrast falls when a region stops short of the object's border (the ring then
contains object) and when it leaks over it (the region then contains background).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra

from pipeline.core.arrays import FloatArray, IntArray
from pipeline.prompts.features import FrameDescription

BoolArray = npt.NDArray[np.bool_]

NUM_REGIONS = 20
SMALLEST_CELLS = 8
LARGEST_SHARE = 0.5
RING_SHARE = 0.35
"""Width of the ring around a region, in square roots of its area."""
AREA_WEIGHT = 0.1
OUTLINE_WEIGHT = 0.5


def similarity_fields(
    description: FrameDescription, cells: Sequence[int], others: Sequence[int] = ()
) -> list[FloatArray]:
    """How strongly every cell belongs to some cells rather than to others: two maps ``(N,)``, more is closer.

    The first is cosine similarity, wherever in the frame; the second the length of the shortest path through
    similar cells, which does not jump to another object that looks the same.
    """
    directions = description.directions
    similarity = _best([directions @ description.smoothed_direction(cell) for cell in cells])
    path = -_path_lengths(description, cells)
    if others:
        rivals = _best([directions @ description.smoothed_direction(cell) for cell in others])
        similarity = similarity - np.maximum(rivals, 0)
        path = path + _path_lengths(description, others)
    return [np.asarray(similarity, np.float32), np.asarray(path, np.float32)]


def nested_regions(
    field: FloatArray, room: BoolArray, grid_hw: tuple[int, int], *, seed: int | None = None
) -> list[BoolArray]:
    """Regions of rising size inside ``room``: the cells with the largest values of ``field``.

    Args:
        field: float32 ``(N,)``.
        room: bool ``(N,)``, where a region may be.
        grid_hw: Rows and columns.
        seed: Only the part that is connected to this cell; None keeps all parts.

    Returns:
        At most ``NUM_REGIONS`` arrays, bool ``(N,)``.
    """
    inside = np.sort(field[room])[::-1]
    most = len(inside) if seed is None else min(len(inside), int(LARGEST_SHARE * len(field)))
    if not len(inside):
        return []
    sizes = np.geomspace(min(SMALLEST_CELLS, most), max(most, 1), NUM_REGIONS).astype(int)
    regions = []
    for size in np.unique(sizes.clip(1)):
        region = (field >= inside[size - 1]) & room
        if seed is not None:
            if not region[seed]:
                continue
            region = connected_to(region, [seed], grid_hw)
        regions.append(region)
    return regions


def connected_to(region: BoolArray, cells: Sequence[int], grid_hw: tuple[int, int]) -> BoolArray:
    """The parts of a region that contain one of ``cells``."""
    _, labels = cv2.connectedComponents(region.reshape(grid_hw).astype(np.uint8), connectivity=4)
    labels = labels.ravel()
    wanted = {int(labels[cell]) for cell in cells} - {0}
    return np.asarray(np.isin(labels, sorted(wanted)), np.bool_)


def without_specks(region: BoolArray, grid_hw: tuple[int, int], share: float = 0.1) -> BoolArray:
    """A region without the parts smaller than ``share`` of its largest."""
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(
        region.reshape(grid_hw).astype(np.uint8), connectivity=8
    )
    areas = statistics[1:, cv2.CC_STAT_AREA]
    if count < 2:
        return region
    return np.asarray(np.isin(labels, 1 + np.flatnonzero(areas >= share * areas.max())).ravel(), np.bool_)


def object_scores(description: FrameDescription, regions: Sequence[BoolArray]) -> FloatArray:
    """How much each region looks like an object, ``(R,)``; 0 for one that is empty or fills the frame."""
    grid_hw = description.grid.grid_hw
    masks = np.stack(regions)
    rings = np.stack([ring_around(region, grid_hw) for region in regions])
    areas, ring_areas = masks.sum(axis=1), rings.sum(axis=1)
    means = masks.astype(np.float32) @ description.whitened / areas.clip(1)[:, None]
    ring_means = rings.astype(np.float32) @ description.whitened / ring_areas.clip(1)[:, None]
    contrast = np.linalg.norm(means - ring_means, axis=1)
    outline = _outline(masks.reshape(-1, *grid_hw)) / np.sqrt(areas.clip(1))
    scores = contrast * areas.clip(1) ** AREA_WEIGHT / outline.clip(1e-3) ** OUTLINE_WEIGHT
    return np.asarray(np.where((areas > 0) & (ring_areas > 0), scores, 0), np.float32)


def ring_around(region: BoolArray, grid_hw: tuple[int, int]) -> BoolArray:
    """The cells around a region, in a ring as wide as suits its size."""
    radius = max(2, int(np.sqrt(region.sum()) * RING_SHARE))
    side = 2 * radius + 1
    grown = cv2.dilate(region.reshape(grid_hw).astype(np.uint8), np.ones((side, side), np.uint8))
    return np.asarray((grown > 0).ravel() & ~region, np.bool_)


def _best(maps: list[FloatArray]) -> FloatArray:
    return np.asarray(np.max(maps, axis=0), np.float32)


def _path_lengths(description: FrameDescription, cells: Sequence[int]) -> FloatArray:
    count = description.grid.num_cells
    graph = coo_matrix((description.steps, description.edges), shape=(count, count)).tocsr()
    lengths: FloatArray = dijkstra(graph, directed=False, indices=list(cells), min_only=True)
    return lengths


def _outline(masks: BoolArray) -> IntArray:
    """Pairs of adjacent cells (8 neighbors) of which one is in the mask: ``(R,)`` from ``(R, h, w)``."""
    cut = [
        masks[:, :, 1:] != masks[:, :, :-1],
        masks[:, 1:] != masks[:, :-1],
        masks[:, 1:, 1:] != masks[:, :-1, :-1],
        masks[:, 1:, :-1] != masks[:, :-1, 1:],
    ]
    return np.asarray(sum(pairs.sum(axis=(1, 2)) for pairs in cut), np.int64)
