from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.core.grid import PatchGrid
from stages.cosegment.stillness import StillRegion, find_still_cells

HEIGHT, WIDTH, FRAMES, CELL_PX = 8, 12, 10, 20
GRID = PatchGrid.from_input((160, 240), (160, 240), patch_px=CELL_PX, stride_px=CELL_PX)
Maps = list[npt.NDArray[np.float32] | None]


def scene(*, animal_px: float = 3.0, camera_px: float = 0.0) -> tuple[Maps, Maps, npt.NDArray[np.bool_]]:
    """A rock (columns 1 to 4) and an animal (5 to 8); both are foreground. Motion, flow, foreground."""
    random = np.random.default_rng(0)
    foreground = np.zeros((HEIGHT, WIDTH), bool)
    foreground[2:6, 1:9] = True
    motions: Maps = [None]
    flows: Maps = [None]
    for _ in range(FRAMES - 1):
        motion = random.uniform(0, 0.2, (HEIGHT, WIDTH))
        motion[2:6, 5:9] += animal_px
        flow = np.full((HEIGHT * CELL_PX, WIDTH * CELL_PX, 2), camera_px)
        motions.append(motion.astype(np.float32).ravel())
        flows.append(flow.astype(np.float32))
    return motions, flows, foreground


def test_the_rock_beside_a_moving_animal_is_still() -> None:
    still = find_still_cells(*scene())
    assert still[2:6, 1:5].all()
    assert still.sum() == 16


def test_a_cell_that_moved_once_is_not_still() -> None:
    motions, flows, foreground = scene()
    moved = motions[4]
    assert moved is not None
    moved[3 * WIDTH + 2] = 1.0
    assert not find_still_cells(motions, flows, foreground)[3, 2]


@pytest.mark.parametrize("options", [{"animal_px": 0.0}, {"camera_px": 2.0}])
def test_nothing_is_said_when_nothing_moves_or_the_camera_does(options: dict[str, float]) -> None:
    assert not find_still_cells(*scene(**options)).any()


def test_the_calm_middle_of_a_moving_object_stays_foreground() -> None:
    motions, flows, foreground = scene()
    for motion in motions:
        if motion is not None:
            field = motion.reshape(HEIGHT, WIDTH)
            field[2:6, 1:9] = 3.0
            field[3:5, 3:7] = 0.0
    assert not find_still_cells(motions, flows, foreground).any()


def test_no_foreground_or_no_motion_gives_nothing() -> None:
    motions, flows, foreground = scene()
    assert not find_still_cells(motions, flows, np.zeros_like(foreground)).any()
    assert not find_still_cells([None], [None], foreground).any()


def test_a_still_region_follows_a_drifting_camera() -> None:
    cells = np.zeros((HEIGHT, WIDTH), bool)
    cells[2:6, 1:5] = True
    region = StillRegion(cells, GRID, GRID.image_hw)
    np.testing.assert_array_equal(region.cells(), cells)
    # What is at x now was at x - 1 in the frame before: the picture moves to the right.
    flow = np.tile(np.array([-1.0, 0.0], np.float32), (HEIGHT * CELL_PX, WIDTH * CELL_PX, 1))
    for _ in range(2 * CELL_PX):
        now = region.follow(flow, np.zeros(HEIGHT * WIDTH, np.float32))
    np.testing.assert_array_equal(now, np.roll(cells, 2, axis=1))


def test_a_still_cell_is_released_when_something_passes_before_it() -> None:
    cells = np.zeros((HEIGHT, WIDTH), bool)
    cells[2:6, 1:5] = True
    region = StillRegion(cells, GRID, GRID.image_hw)
    motion = np.zeros((HEIGHT, WIDTH), np.float32)
    motion[3:5, 1:3] = 8.0
    now = region.follow(np.zeros((HEIGHT * CELL_PX, WIDTH * CELL_PX, 2), np.float32), motion.ravel())
    assert not now[3:5, 1:3].any()
    assert now[2:6, 4].all()
