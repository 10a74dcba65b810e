from __future__ import annotations

from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.core.arrays import box_intersection, box_iou, normalize_rows
from stages.track.association import FORBIDDEN, assign, same_category, widen
from stages.track.gallery import Gallery, appearance


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param([0, 0, 2, 2], [0, 0, 2, 2], 1.0, id="same"),
        pytest.param([0, 0, 2, 2], [2, 0, 4, 2], 0.0, id="touching"),
        pytest.param([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7, id="corner"),
        pytest.param([0, 0, 4, 4], [1, 1, 3, 3], 0.25, id="inside"),
        pytest.param([1, 1, 1, 5], [0, 0, 9, 9], 0.0, id="no area"),
        pytest.param([1, 1, 1, 1], [1, 1, 1, 1], 0.0, id="both no area"),
    ],
)
def test_iou(first: list[float], second: list[float], expected: float) -> None:
    assert box_iou(np.array([first]), np.array([second])).item() == pytest.approx(expected)


def test_no_boxes_have_empty_overlaps() -> None:
    none = np.zeros((0, 4))
    assert box_iou(none, np.ones((3, 4))).shape == (0, 3)
    assert box_intersection(np.ones((2, 4)), none).shape == (2, 0)


def test_widened_boxes_keep_their_center() -> None:
    wide = widen(np.array([[10.0, 20.0, 14.0, 40.0]]), 0.25)
    np.testing.assert_allclose(wide, [[9.0, 15.0, 15.0, 45.0]])


def test_an_unknown_category_fits_any() -> None:
    assert same_category(["car", "person", ""], ["car", ""]).tolist() == [
        [True, True],
        [False, True],
        [True, True],
    ]


def test_assignment_equals_trying_everything() -> None:
    random = np.random.default_rng(1)
    for _ in range(30):
        similarity = random.random((4, 5))
        similarity[random.random((4, 5)) < 0.3] = FORBIDDEN
        gain = np.where(similarity >= 0.4, similarity - 0.4, 0.0)
        best = max(sum(gain[row, column] for row, column in enumerate(p)) for p in permutations(range(5), 4))
        pairs = assign(similarity, 0.4)
        assert sum(gain[row, column] for row, column in pairs) == pytest.approx(best)
        assert all(similarity[row, column] >= 0.4 for row, column in pairs)
        assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)


def test_a_forbidden_pair_never_pushes_out_an_allowed_one() -> None:
    assert assign(np.array([[FORBIDDEN, 0.5], [FORBIDDEN, 0.6]]), 0.1) == [(1, 1)]
    assert assign(np.zeros((0, 3)), 0.1) == []


def unit(*values: float) -> npt.NDArray[np.float32]:
    row: npt.NDArray[np.float32] = normalize_rows(np.array([values], np.float32))[0]
    return row


def test_a_gallery_is_as_like_as_its_best_entry_less_its_age() -> None:
    gallery = Gallery(size=4, redundant=2.0)
    gallery.add(unit(1, 0, 0), 0.0)
    gallery.add(unit(0, 1, 0), 4.0)
    queries = np.stack([unit(1, 0, 0), unit(0, 1, 0), unit(0, 0, 1)])
    similarity = appearance([gallery, Gallery(4, 2.0)], queries, seconds=5.0, forgetting=0.1)
    np.testing.assert_allclose(similarity, np.array([[0.5, 0.9, -0.1], [0.0, 0.0, 0.0]]), atol=1e-6)


def test_a_gallery_is_bounded_and_forgets_the_oldest() -> None:
    gallery = Gallery(size=3, redundant=2.0)
    for second in range(10):
        gallery.add(unit(1, second, 0), float(second))
    assert gallery.seconds == [7.0, 8.0, 9.0]


def test_much_the_same_view_replaces_the_newest_and_keeps_the_older_one() -> None:
    gallery = Gallery(size=3, redundant=0.95)
    for second, view in enumerate([unit(1, 0, 0), unit(0, 1, 0), unit(0, 1, 0.05), unit(0, 1, 0.1)]):
        gallery.add(view, float(second))
    assert gallery.seconds == [0.0, 3.0]
