from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.ops.stillness import find_still_cells

HEIGHT, WIDTH, CHANNELS, FRAMES = 8, 12, 16, 10


def scene(*, animal_moves: bool, camera_moves: bool) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """A rock (columns 1 to 4) and an animal (5 to 8) on textured ground; both are foreground."""
    random = np.random.default_rng(0)
    ground = random.normal(size=(HEIGHT, WIDTH, CHANNELS))
    foreground = np.zeros((HEIGHT, WIDTH), bool)
    foreground[2:6, 1:9] = True
    frames: list[npt.NDArray[np.float64]] = []
    for _ in range(FRAMES):
        frame = ground + 0.01 * random.normal(size=ground.shape)
        if animal_moves:
            frame[2:6, 5:9] = random.normal(size=(4, 4, CHANNELS))
        if camera_moves:
            frame = np.roll(frame, len(frames), axis=1)
        frames.append(frame.reshape(-1, CHANNELS))
    return np.stack(frames).astype(np.float32), foreground


def test_the_rock_beside_a_moving_animal_is_still() -> None:
    still = find_still_cells(*scene(animal_moves=True, camera_moves=False)).mask
    assert still[2:6, 1:4].all()
    assert not still[2:6, 5:9].any()
    assert not still[:2].any()


def test_nothing_is_said_when_nothing_moves_or_the_camera_does() -> None:
    assert not find_still_cells(*scene(animal_moves=False, camera_moves=False)).mask.any()
    assert not find_still_cells(*scene(animal_moves=True, camera_moves=True)).mask.any()


def test_the_calm_middle_of_a_moving_object_stays_foreground() -> None:
    rows, foreground = scene(animal_moves=True, camera_moves=False)
    frames = rows.reshape(FRAMES, HEIGHT, WIDTH, CHANNELS)
    frames[:, 2:6, 1:5] = np.random.default_rng(1).normal(size=(FRAMES, 4, 4, CHANNELS))
    frames[:, 3:5, 4:6] = frames[:1, 3:5, 4:6]
    assert not find_still_cells(rows, foreground).mask.any()


def test_no_foreground_gives_nothing() -> None:
    rows, foreground = scene(animal_moves=True, camera_moves=False)
    assert not find_still_cells(rows, np.zeros_like(foreground)).mask.any()


def test_a_still_cell_is_released_while_something_stands_before_it() -> None:
    rows, foreground = scene(animal_moves=True, camera_moves=False)
    found = find_still_cells(rows, foreground)
    assert found.now(rows[3])[2:6, 1:4].all()
    covered = rows[3].reshape(HEIGHT, WIDTH, CHANNELS).copy()
    covered[3, 2] = np.random.default_rng(5).normal(size=CHANNELS)
    now = found.now(covered.reshape(-1, CHANNELS))
    assert not now[3, 2]
    assert now[2, 2]
