"""Maps that regions are grown on: how strongly each cell belongs to clicked ones, or to the inside of a box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra

from pipeline.core.arrays import FloatArray, normalize_rows
from pipeline.prompts.features import FrameDescription
from pipeline.prompts.measures import ring_around
from pipeline.prompts.views import BoolArray

_LEAST_STEP = 1e-3
_NUM_RING_CELLS = 300
_NUM_NEAREST = 3


@dataclass(frozen=True, slots=True)
class ClickFields:
    """What clicks say about every cell.

    Attributes:
        fields: Maps ``(N,)``; more is closer to the positive clicks.
        room: bool ``(N,)``: cells whose shortest path through similar cells leads to a positive click.
    """

    fields: list[FloatArray]
    room: BoolArray


def click_fields(cells: FrameDescription, positive: Sequence[int], negative: Sequence[int] = ()) -> ClickFields:
    """Cosine before and after whitening, length of the shortest path, and a random walk from clicked cells.

    Cosine finds what looks the same wherever it is; the path does not jump to another object that looks the same;
    the walk goes where many paths lead. With negative cells the maps are differences, and the plain cosines stay.

    Args:
        cells: Of the view.
        positive: At least one cell.
        negative: Cells that do not belong to the object.
    """
    similarities = [_similarity(cells, rows, positive) for rows in (cells.raw_directions, cells.directions)]
    path, walk = -path_lengths(cells, positive), cells.walker.visits(positive)
    room = np.ones(len(walk), np.bool_)
    plain: list[FloatArray] = []
    if negative:
        plain = list(similarities)
        rivals = [_similarity(cells, rows, negative) for rows in (cells.raw_directions, cells.directions)]
        similarities = [own - other.clip(min=0) for own, other in zip(similarities, rivals, strict=True)]
        path = path + path_lengths(cells, negative)
        walk = walk - cells.walker.visits(negative)
        room = path > 0
        room[list(positive)] = True
        room[list(negative)] = False
    both = _standardized(similarities[1], room) + _standardized(walk, room)
    return ClickFields([np.asarray(f, np.float32) for f in (*similarities, path, walk, both, *plain)], room)


def path_lengths(cells: FrameDescription, starts: Sequence[int]) -> FloatArray:
    """Length ``(N,)`` of the shortest path to one of ``starts``; steps cost their dissimilarity."""
    count = cells.grid.num_cells
    graph = coo_matrix(((cells.steps + _LEAST_STEP) * cells.lengths, cells.edges), shape=(count, count)).tocsr()
    lengths: FloatArray = dijkstra(graph, directed=False, indices=list(starts), min_only=True)
    return lengths


def box_fields(cells: FrameDescription, inside: BoolArray) -> list[FloatArray]:
    """How much each cell differs from what surrounds a box; none where nothing does.

    Along the line between the means, from the most similar of the surrounding cells, both, and by a random walk
    from the inside against one from the ring.

    Args:
        cells: Of the view.
        inside: bool ``(N,)``, the cells in the box.
    """
    ring = ring_around(inside, cells.grid.grid_hw)
    if not ring.any():
        return []
    linear = discriminant(cells, inside, ring)
    sample = cells.directions[ring][:: max(1, int(ring.sum()) // _NUM_RING_CELLS)]
    nearest = -np.sort(cells.directions @ sample.T, axis=1)[:, -_NUM_NEAREST:].mean(axis=1)
    walk = np.subtract(*(cells.walker.visits(np.flatnonzero(part).tolist()) for part in (inside, ring)))
    both = _standardized(linear, inside) + _standardized(nearest, inside)
    return [np.asarray(field, np.float32) for field in (linear, nearest, both, walk)]


def discriminant(cells: FrameDescription, region: BoolArray, ring: BoolArray) -> FloatArray:
    """Fisher's linear discriminant of a region against its ring, at every cell; 0 lies halfway."""
    mean, rest = cells.whitened[region].mean(axis=0), cells.whitened[ring].mean(axis=0)
    return np.asarray((cells.whitened - (mean + rest) / 2) @ (mean - rest), np.float32)


def _similarity(cells: FrameDescription, rows: FloatArray, clicked: Sequence[int]) -> FloatArray:
    """The largest cosine ``(N,)`` to the surroundings of one of the clicked cells."""
    means = normalize_rows(np.stack([rows[cells.neighborhood(cell)].mean(axis=0) for cell in clicked]))
    return np.asarray((rows @ means.T).max(axis=1), np.float32)


def _standardized(field: FloatArray, among: BoolArray) -> FloatArray:
    """A map with mean 0 and deviation 1 among some cells."""
    return np.asarray((field - field[among].mean()) / max(float(field[among].std()), 1e-9), np.float32)
