from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.found_objects import FoundCounts, ObjectMatcher


def square(left: int, number: int, *, size: int = 10, top: int = 5) -> np.ndarray:
    mask = np.zeros((40, 80), np.uint8)
    mask[top : top + size, left : left + size] = number
    return mask


def run(frames: list[tuple[np.ndarray, np.ndarray]]) -> ObjectMatcher:
    matcher = ObjectMatcher()
    for truth, found in frames:
        matcher.add(truth, found)
    return matcher


def test_a_second_id_for_an_object_is_wrong() -> None:
    frames = [(square(n, 1), square(n, 5 if n < 8 else 6)) for n in range(16)]
    matcher = run(frames)
    assert matcher.matches() == {5: 1}
    assert matcher.counts() == FoundCounts(true=1, true_found=1, found=2, found_right=1)
    assert matcher.counts().precision == 0.5


def test_objects_that_stand_still_are_small_or_short_do_not_count() -> None:
    still = run([(square(3, 1), square(3, 1)) for _ in range(12)])
    assert still.counts() == FoundCounts(true=0, true_found=0, found=1, found_right=1)
    assert still.counts().recall == 1.0
    small = run([(square(n, 1, size=4), square(n, 1, size=4)) for n in range(12)])
    assert small.counting() == ()
    short = run([(square(4 * n, 1), square(4 * n, 1)) for n in range(9)])
    assert short.counting() == ()


def test_the_earliest_good_frame_decides() -> None:
    """Found object 7 lies on true 1 first and on true 2 later; 8 gets what is left."""
    early = [(square(2 * n, 1) + square(40, 2), square(2 * n, 7)) for n in range(10)]
    late = [(square(2 * n, 1) + square(40, 2), square(40, 7) + square(2 * n, 8)) for n in range(10, 12)]
    assert run(early + late).matches() == {7: 1}


def test_void_pixels_count_neither_way() -> None:
    truth = square(5, 1)
    truth[5:15, 15:25] = 255
    found = np.where(truth > 0, np.uint8(3), np.uint8(0))
    assert run([(truth, found)]).matches() == {3: 1}


def test_half_an_overlap_is_needed() -> None:
    assert run([(square(5, 1), square(9, 1))]).matches() == {}
    assert run([(square(5, 1), square(8, 1))]).matches() == {1: 1}


def test_masks_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in size"):
        ObjectMatcher().add(square(5, 1), square(5, 1)[1:])
