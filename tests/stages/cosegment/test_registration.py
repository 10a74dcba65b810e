"""Overlapping patches do not tile the frame: plain resizing of cells is wrong by up to half a patch."""

from __future__ import annotations

import numpy as np

from pipeline.core.arrays import normalize_rows
from pipeline.core.grid import PatchGrid
from stages.cosegment.motion import object_motion
from stages.cosegment.observation import Observation
from stages.cosegment.stillness import StillRegion
from stages.cosegment.temporal_maps import TemporalMaps

SIDE, CELLS, CELL_PX = 280, 19, 14
GRID = PatchGrid.from_input((SIDE, SIDE), (140, 140), patch_px=14, stride_px=7)


def test_the_grid_does_not_tile_the_frame() -> None:
    assert GRID.grid_hw == (CELLS, CELLS)
    assert not GRID.fills_image


def test_motion_of_a_cell_is_the_mean_over_its_stride() -> None:
    flow = np.zeros((SIDE, SIDE, 2), np.float32)
    flow[100:180, 231:, 0] = 6.0
    flow[196:, :24, 1] = -4.0
    expected = np.zeros((CELLS, CELLS))
    magnitude = np.linalg.norm(flow, axis=-1)
    for row in range(CELLS):
        for column in range(CELLS):
            top, left = CELL_PX * row + CELL_PX // 2, CELL_PX * column + CELL_PX // 2
            expected[row, column] = magnitude[top : top + CELL_PX, left : left + CELL_PX].mean()
    np.testing.assert_allclose(object_motion(flow, GRID), expected, atol=1e-3)


def test_a_still_region_moves_one_cell_per_stride() -> None:
    cells = np.zeros((CELLS, CELLS), bool)
    cells[5:10, 1:4] = True
    region = StillRegion(cells, GRID, GRID.image_hw)
    flow = np.zeros((SIDE, SIDE, 2), np.float32)
    flow[..., 0] = -CELL_PX
    for _ in range(14):
        now = region.follow(flow, np.zeros(CELLS * CELLS, np.float32))
    np.testing.assert_array_equal(now, np.roll(cells, 14, axis=1))


def test_the_past_counts_where_the_flow_points_to_the_right_cell() -> None:
    """The scene moves by twelve strides; every cell finds itself again, so the old labels win."""
    before = np.random.default_rng(0).standard_normal((CELLS, CELLS, 16))
    now = np.roll(before, 12, axis=1)
    flow = np.zeros((SIDE, SIDE, 2), np.float32)
    flow[..., 0] = -12 * CELL_PX
    gray = np.zeros((SIDE, SIDE), np.uint8)
    rest = np.zeros(CELLS * CELLS, np.float32)
    first, second = (
        Observation(normalize_rows(rows.reshape(-1, 16)), rest, rest, gray, flow) for rows in (before, now)
    )
    memory = TemporalMaps(0.9, 0.9)
    everywhere, nowhere = np.ones((1, SIDE, SIDE), np.float32), np.zeros((1, SIDE, SIDE), np.float32)
    numbers = np.array([1])
    memory.blend(np.concatenate([nowhere, everywhere]), numbers, first, GRID)
    blended = memory.blend(np.concatenate([everywhere, nowhere]), numbers, second, GRID)
    known = blended[0][:, 13 * CELL_PX : -CELL_PX]
    np.testing.assert_allclose(known, 1 - 0.9, atol=1e-5)
