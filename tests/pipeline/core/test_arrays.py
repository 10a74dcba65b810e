from __future__ import annotations

import numpy as np
import pytest

from pipeline.core.arrays import box_areas, box_intersection, box_iou, normalize_rows


def test_rows_get_length_one_and_zero_rows_stay_zero() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 7))
    unit = normalize_rows(np.vstack([rows, np.zeros((1, 7))]))
    assert unit.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), [1, 1, 1, 1, 1, 0], atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_an_error_that_names_the_row(bad: float) -> None:
    with pytest.raises(ValueError, match="row 1 of 2"):
        normalize_rows(np.array([[0.0, 0.0], [bad, 1.0]]))


def test_overlap_agrees_with_counting_pixels() -> None:
    rng = np.random.default_rng(1)
    corners = np.sort(rng.integers(0, 12, (2, 6, 2, 2)), axis=2)
    first, second = (boxes.reshape(6, 4) for boxes in corners)

    def painted(box: np.ndarray) -> np.ndarray:
        canvas = np.zeros((12, 12), bool)
        canvas[box[1] : box[3], box[0] : box[2]] = True
        return canvas

    for i, a in enumerate(first):
        for j, b in enumerate(second):
            shared = int((painted(a) & painted(b)).sum())
            union = int((painted(a) | painted(b)).sum())
            assert box_intersection(first, second)[i, j] == shared
            assert box_iou(first, second)[i, j] == pytest.approx(shared / union if union else 0.0)


def test_no_boxes_give_empty_tables_of_the_right_shape() -> None:
    none = np.zeros((0, 4))
    assert box_iou(none, np.ones((3, 4))).shape == (0, 3)
    assert box_areas(none).shape == (0,)
