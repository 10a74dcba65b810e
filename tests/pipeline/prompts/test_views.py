from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.core.grid import PatchGrid
from pipeline.core.records import Features
from pipeline.prompts import Box, Point
from pipeline.prompts.features import describe
from pipeline.prompts.views import Raster, View, Window, region_of_pixels, whole, window_for

HW = (120, 200)


def view(window: Window, grid_hw: tuple[int, int]) -> View:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 255, (window.height, window.width, 3)).astype(np.uint8)
    data = torch.from_numpy(generator.standard_normal((8, *grid_hw)).astype(np.float32))
    grid = PatchGrid.covering((window.height, window.width), grid_hw)
    return View(describe(image, Features(data=data, grid=grid)), window, HW)


def test_a_window_is_half_the_frame_around_the_click_and_moved_into_it() -> None:
    assert window_for([Point(100, 60)], HW) == Window(30, 50, 60, 100)
    assert window_for([Point(3, 119)], HW) == Window(60, 0, 60, 100)


def test_a_further_click_moves_the_window_only_if_it_lies_outside() -> None:
    first = Point(100, 60)
    assert window_for([first, Point(140, 60)], HW) == window_for([first], HW)
    assert window_for([first, Point(190, 60, positive=False)], HW) == window_for([first], HW)
    moved = window_for([first, Point(160, 60)], HW)
    assert moved is not None
    assert moved.contains(first)
    assert moved.contains(Point(160, 60))
    assert window_for([Point(5, 5), Point(195, 115)], HW) is None


def test_the_window_of_a_box_holds_the_box_with_a_margin() -> None:
    window = window_for([Box(80, 40, 120, 60)], HW)
    assert window is not None
    assert window.contains(Point(75, 38))
    assert window.contains(Point(125, 62))
    assert window_for([Box(0, 0, 200, 120)], HW) is None


def test_cells_and_points_of_a_window_are_where_they_are_in_the_frame() -> None:
    window = Window(30, 50, 60, 100)
    part = view(window, (12, 20))
    assert part.cell(Point(50.5, 30.5)) == 0
    assert part.cell(Point(149.5, 89.5)) == 12 * 20 - 1
    inside = part.cells_in(Box(60, 40, 80, 50)).reshape(12, 20)
    assert np.flatnonzero(inside.any(axis=1)).tolist() == [2, 3]
    assert np.flatnonzero(inside.any(axis=0)).tolist() == [2, 3, 4, 5]
    assert part.extents(inside.reshape(1, -1)) == pytest.approx(np.array([[60, 40, 80, 50]]), abs=1e-3)
    assert part.inner_sides() == (True, True, True, True)
    assert view(whole(HW), (12, 20)).inner_sides() == (False, False, False, False)


@pytest.mark.parametrize("window", [Window(0, 0, *HW), Window(30, 50, 60, 100)])
def test_a_region_goes_to_the_raster_and_back(window: Window) -> None:
    part = view(window, (12, 20))
    cells = np.zeros((12, 20), np.bool_)
    cells[3:9, 5:15] = True
    raster = Raster.over(whole(HW))
    on_raster = raster.from_cells(part, cells.reshape(1, -1))[0]
    pixels = raster.to_pixels(on_raster.astype(np.float32), HW) > 0.5
    height, width = window.height // 12, window.width // 20
    expected = np.zeros(HW, np.bool_)
    expected[
        window.top + 3 * height : window.top + 9 * height, window.left + 5 * width : window.left + 15 * width
    ] = 1
    assert (pixels & expected).sum() / (pixels | expected).sum() > 0.95
    assert np.array_equal(region_of_pixels(part, expected), cells.ravel())
    assert np.array_equal(raster.from_pixels(expected).reshape(raster.shape), expected[: raster.shape[0]])
