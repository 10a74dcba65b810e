from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipeline.core.resizing import id_areas, shrunk, shrunk_by_whole_factor

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 96, 3), np.uint8)


def test_a_whole_factor_is_the_mean_of_blocks() -> None:
    got = shrunk_by_whole_factor(IMAGE, 12)
    want = IMAGE.reshape(12, 4, 24, 4, 3).astype(float).mean(axis=(1, 3))
    assert got.shape == (12, 24, 3)
    assert np.abs(got - want).max() <= 0.5 + 1e-6


def test_an_image_that_is_small_already_stays_as_it_is() -> None:
    assert shrunk_by_whole_factor(IMAGE, 40) is IMAGE


@pytest.mark.parametrize("size_hw", [(11, 20), (24, 48), (30, 60), (48, 96)])
def test_shrinking_in_two_steps_is_close_to_one_step(size_hw: tuple[int, int]) -> None:
    smooth = cv2.GaussianBlur(IMAGE, (0, 0), 4)
    direct = cv2.resize(smooth, size_hw[::-1], interpolation=cv2.INTER_AREA)
    got = shrunk(smooth, size_hw)
    assert got.shape == direct.shape
    assert np.abs(got.astype(int) - direct).max() <= 3


def test_areas_of_ids_equal_a_count_of_each() -> None:
    mask = IMAGE[..., 0]
    assert id_areas(mask).tolist() == [int((mask == number).sum()) for number in range(256)]
