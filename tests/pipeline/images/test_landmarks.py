from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import MediaError
from pipeline.formats.landmarks import LandmarkImage
from pipeline.images.landmarks import fit_regression, landmark_errors, part_centers


def test_a_planted_linear_relation_is_found_exactly() -> None:
    rng = np.random.default_rng(0)
    centers, relation = rng.random((40, 3, 2)), rng.normal(size=(7, 4))
    points = (np.c_[centers.reshape(40, 6), np.ones(40)] @ relation).reshape(40, 2, 2)
    visible = rng.random((40, 2)) < 0.8
    spoiled = np.where(visible[..., None], points, 1e6)  # what is not visible may be anything
    fitted = fit_regression(centers[:30], spoiled[:30], visible[:30])
    np.testing.assert_allclose(fitted.predict(centers[30:]), points[30:], atol=1e-9)


def test_a_missing_part_counts_as_its_mean_over_the_training_images() -> None:
    centers = np.array([[[0.0, 0.0]], [[1.0, 0.0]], [[np.nan, np.nan]]])
    points = np.array([[[0.0, 0.0]], [[1.0, 0.0]], [[0.5, 0.0]]])
    fitted = fit_regression(centers, points, np.ones((3, 1), bool))
    np.testing.assert_allclose(fitted.predict(centers), points, atol=1e-12)
    with pytest.raises(MediaError, match="keypoint 1 is visible in no"):
        fit_regression(centers, points, np.zeros((3, 1), bool))


def test_errors_are_by_the_unit_along_each_axis_and_only_of_visible_points() -> None:
    images = [
        LandmarkImage(Path("a"), np.array([[0.0, 0.0], [5.0, 5.0]]), np.array([True, True]), (10.0, 20.0), False),
        LandmarkImage(Path("b"), np.array([[0.0, 0.0], [5.0, 5.0]]), np.array([True, False]), (2.0, 2.0), False),
    ]
    predicted = np.array([[[3.0, 8.0], [5.0, 5.0]], [[2.0, 0.0], [99.0, 99.0]]])
    expected = [[0.5, 0.0], [1.0, np.nan]]
    np.testing.assert_allclose(landmark_errors(predicted, images), expected)


def test_centers_are_those_of_the_pixels_of_each_part() -> None:
    rng = np.random.default_rng(0)
    parts = rng.integers(0, 4, (11, 17)).astype(np.uint8)
    for number, center in enumerate(part_centers(parts, 3), 1):
        rows, columns = np.nonzero(parts == number)
        np.testing.assert_allclose(center, [columns.mean() + 0.5, rows.mean() + 0.5])
