"""Filled outlines against matplotlib's point-in-polygon test and pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.path import Path

from pipeline.formats.outlines import fill_outlines

SIZE = (40, 60)


def polygons(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [random.uniform((-8, -8), (68, 48), (random.integers(3, 12), 2)) for _ in range(count)]


def test_pixels_are_those_whose_center_lies_inside() -> None:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    centers = np.stack([x.ravel(), y.ravel()], axis=1)
    for polygon in polygons(40):
        expected = Path(polygon).contains_points(centers).reshape(SIZE)
        np.testing.assert_array_equal(fill_outlines([polygon], SIZE), expected)


def test_several_polygons_are_one_object_and_whole_pixels_are_exact() -> None:
    left, right = np.array([[2, 3], [5, 3], [5, 9], [2, 9]]), np.array([[4, 5], [20, 5], [20, 7], [4, 7]])
    expected = np.zeros(SIZE, bool)
    expected[3:9, 2:5] = expected[5:7, 4:20] = True
    np.testing.assert_array_equal(fill_outlines([left, right], SIZE), expected)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_pycocotools_fills_the_same_but_for_pixels_on_the_outline() -> None:
    coco = pytest.importorskip("pycocotools.mask", reason="needs pycocotools (extra test)")
    for center in ((15.3, 20.8), (30, 20), (48.6, 11.1)):
        angles = np.arange(9) / 9 * 2 * np.pi
        polygon = np.stack([center[0] + 10 * np.cos(angles), center[1] + 10 * np.sin(angles)], axis=1)
        (encoded,) = coco.frPyObjects([polygon.ravel().tolist()], *SIZE)
        ours, theirs = fill_outlines([polygon], SIZE), coco.decode(encoded).astype(bool)
        differing = np.argwhere(ours != theirs) + 0.5
        edges = np.stack([polygon, np.roll(polygon, -1, axis=0)], axis=1)
        for row, column in differing:
            assert min(distance((column, row), *edge) for edge in edges) < 0.75
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.93


def distance(point: tuple[float, float], start: np.ndarray, end: np.ndarray) -> float:
    along = np.clip(np.dot(point - start, end - start) / np.dot(end - start, end - start), 0, 1)
    return float(np.linalg.norm(point - start - along * (end - start)))
