from __future__ import annotations

import numpy as np
import pytest

from pipeline.core.grid import PatchGrid
from pipeline.local.labeled_set import IGNORED
from pipeline.local.patches import Confusion, cell_of_pixels, class_counts, majority


@pytest.fixture
def labels() -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(-1, 4, (6, 9))
    return coarse.repeat(7, axis=0).repeat(5, axis=1)[:40, :43].astype(np.int16)


@pytest.mark.parametrize(
    "grid",
    [
        PatchGrid.covering((40, 43), (5, 4)),
        PatchGrid.from_input((40, 43), (28, 28), patch_px=14, stride_px=7),
        PatchGrid.covering((40, 43), (80, 43)),
    ],
)
def test_counts_are_those_of_a_loop_over_pixels(labels: np.ndarray, grid: PatchGrid) -> None:
    counts = class_counts(labels, grid, 4)
    expected = np.zeros((grid.num_cells, 5), int)
    for y in range(40):
        for x in range(43):
            row = int(np.floor((y + 0.5 - grid.offset_px[0]) / grid.stride_px[0] + 0.5))
            column = int(np.floor((x + 0.5 - grid.offset_px[1]) / grid.stride_px[1] + 0.5))
            row, column = min(max(row, 0), grid.grid_hw[0] - 1), min(max(column, 0), grid.grid_hw[1] - 1)
            expected[row * grid.grid_hw[1] + column, labels[y, x] if labels[y, x] != IGNORED else 4] += 1
    np.testing.assert_array_equal(counts, expected)
    assert counts.sum() == 40 * 43


def test_the_majority_is_that_of_a_loop(labels: np.ndarray) -> None:
    grid = PatchGrid.covering((40, 43), (5, 4))
    cells, found = cell_of_pixels(grid), majority(class_counts(labels, grid, 4))
    for cell in range(grid.num_cells):
        values = labels[cells == cell].tolist()
        best = max(sorted({v for v in values if v >= 0}), key=values.count, default=IGNORED)
        expected = best if best != IGNORED and values.count(best) >= values.count(IGNORED) else IGNORED
        assert found[cell] == expected


def test_scores_are_those_of_a_loop_over_pixels(labels: np.ndarray) -> None:
    grid = PatchGrid.covering((40, 43), (5, 4))
    predicted = np.random.default_rng(1).integers(0, 4, grid.num_cells)
    confusion = Confusion(5)
    for _ in range(2):
        confusion.add(class_counts(labels, grid, 5), predicted)
    by_pixel = predicted[cell_of_pixels(grid)]
    known = labels != IGNORED
    ious = []
    for c in range(4):
        hits = sum(1 for p, t in zip(by_pixel[known], labels[known], strict=True) if p == t == c)
        union = sum(1 for p, t in zip(by_pixel[known], labels[known], strict=True) if c in (p, t))
        ious.append(hits / union)
    np.testing.assert_allclose(confusion.iou[:4], ious)
    assert np.isnan(confusion.iou[4])
    assert confusion.mean_iou == pytest.approx(np.mean(ious))
    assert confusion.pixel_accuracy == pytest.approx((by_pixel == labels)[known].mean())
    assert np.isnan(Confusion(2).mean_iou)
    assert np.isnan(Confusion(2).pixel_accuracy)


def test_labels_that_follow_the_cells_score_one() -> None:
    grid = PatchGrid.covering((28, 42), (2, 3))
    truth = np.arange(6).reshape(2, 3)
    pixels = truth.repeat(14, axis=0).repeat(14, axis=1).astype(np.int16)
    counts = class_counts(pixels, grid, 6)
    confusion = Confusion(6)
    confusion.add(counts, majority(counts))
    assert confusion.mean_iou == confusion.pixel_accuracy == 1.0
