"""Nested regions of cells: thresholds on a map, connected to what was clicked."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from pipeline.core.arrays import FloatArray
from pipeline.prompts.views import BoolArray

NUM_REGIONS = 16
SMALLEST_CELLS = 8
LARGEST_SHARE = 0.5


def nested_regions(
    field: FloatArray,
    room: BoolArray,
    grid_hw: tuple[int, int],
    *,
    seeds: Sequence[int] = (),
    largest_share: float = LARGEST_SHARE,
) -> list[BoolArray]:
    """Regions of rising size inside ``room``: the cells with the largest values of ``field``.

    Args:
        field: float32 ``(N,)``.
        room: bool ``(N,)``, where a region may be.
        grid_hw: Rows and columns.
        seeds: Every region contains these cells, and only what is connected to one of them; without seeds all
            parts are kept.
        largest_share: Of the cells that a region around seeds may have.

    Returns:
        At most ``NUM_REGIONS`` arrays, bool ``(N,)``.
    """
    inside = np.sort(field[room])[::-1]
    most = len(inside) if not seeds else min(len(inside), int(largest_share * len(field)))
    if not len(inside):
        return []
    sizes = np.geomspace(min(SMALLEST_CELLS, max(most, 1)), max(most, 1), NUM_REGIONS).astype(int)
    regions = []
    for size in np.unique(sizes.clip(1)):
        region = (field >= inside[size - 1]) & room
        if seeds:
            if not region[list(seeds)].all():
                continue
            region = connected_to(region, seeds, grid_hw)
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
