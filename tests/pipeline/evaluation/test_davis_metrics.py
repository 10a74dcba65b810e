"""J, F and their statistics: protocol cases, a naive version, and the official numbers."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.evaluation.davis import score_results
from pipeline.evaluation.davis_metrics import (
    boundary_map,
    boundary_measure,
    combine,
    region_similarity,
    statistics,
)
from pipeline.formats.davis import open_davis

Mask = npt.NDArray[np.bool_]


def rectangle(size: int, top: int, bottom: int, left: int, right: int) -> Mask:
    mask = np.zeros((size, size), bool)
    mask[top:bottom, left:right] = True
    return mask


def random_blobs(seed: int) -> Mask:
    noise = np.random.default_rng(seed).normal(size=(40, 53))
    for _ in range(3):
        noise = (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1) + np.roll(noise, -1, 0)) / 4
    return np.asarray(noise > 0.1)


def naive_boundary(mask: Mask) -> set[tuple[int, int]]:
    height, width = mask.shape
    found = set()
    for y, x in itertools.product(range(height), range(width)):
        neighbors = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
        inside = [(r, c) for r, c in neighbors if r < height and c < width]
        if any(mask[y, x] != mask[r, c] for r, c in inside):
            found.add((y, x))
    return found


def naive_f(prediction: Mask, truth: Mask, radius: int) -> float:
    found, wanted = naive_boundary(prediction), naive_boundary(truth)

    def matched(some: set[tuple[int, int]], others: set[tuple[int, int]]) -> float:
        near = [any((y - r) ** 2 + (x - c) ** 2 <= radius**2 for r, c in others) for y, x in some]
        return sum(near) / len(near)

    precision, recall = matched(found, wanted), matched(wanted, found)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("seed", range(4))
def test_boundary_measure_equals_the_naive_version(seed: int) -> None:
    prediction, truth = random_blobs(seed), random_blobs(seed + 50)
    assert {(int(y), int(x)) for y, x in np.argwhere(boundary_map(truth))} == naive_boundary(truth)
    for radius in (1, 2, 5):
        got = boundary_measure(prediction, truth, bound_th=radius)
        assert got == pytest.approx(naive_f(prediction, truth, radius), abs=1e-12)


SIZES = [((480, 854), 8), ((480, 910), 9), ((480, 1152), 10), ((224, 224), 3)]


@pytest.mark.parametrize(("size", "radius"), SIZES)
def test_the_tolerance_follows_the_diagonal(size: tuple[int, int], radius: int) -> None:
    truth, shifted = np.zeros(size, bool), np.zeros(size, bool)
    truth[:, :50] = True
    shifted[:, : 50 + radius] = True
    assert boundary_measure(shifted, truth) == 1.0
    shifted[:, : 50 + radius + 1] = True
    assert boundary_measure(shifted, truth) == 0.0


def test_void_pixels_are_ignored() -> None:
    truth, prediction = rectangle(200, 100, 150, 100, 150), rectangle(200, 50, 150, 100, 150)
    void = rectangle(200, 50, 100, 100, 150)
    assert region_similarity(prediction, truth, void) == 1.0
    assert boundary_measure(prediction, truth, void) == 1.0
    assert region_similarity(prediction, truth) == 0.5


def test_empty_masks() -> None:
    empty, some = np.zeros((20, 20), bool), rectangle(20, 5, 9, 5, 9)
    assert region_similarity(empty, empty) == 1.0
    assert region_similarity(some, empty) == 0.0
    assert boundary_measure(empty, empty) == 1.0
    assert boundary_measure(some, empty) == 0.0
    assert boundary_measure(empty, some) == 0.0


def test_a_full_mask_has_no_boundary() -> None:
    full = np.ones((20, 20), bool)
    assert not boundary_map(full).any()
    assert boundary_measure(full, full) == 1.0


def test_statistics_of_known_values() -> None:
    """48 frames: the edges of the quarters are 0, 12, 24, 35 and 47, and both ends belong to a bin."""
    values = np.linspace(1.0, 0.0, 48)
    got = statistics(values)
    assert got.mean == pytest.approx(0.5)
    assert got.recall == pytest.approx(0.5)
    assert got.decay == pytest.approx(values[0:13].mean() - values[35:48].mean())


def test_recall_counts_only_above_one_half() -> None:
    assert statistics(np.array([0.5, 0.5, 0.51, 0.2])).recall == 0.25


def test_decay_of_more_than_256_frames_does_not_wrap() -> None:
    values = np.r_[np.ones(300), np.zeros(300)]
    assert statistics(values).decay == 1.0


def test_frames_without_a_value_are_left_out_of_the_mean() -> None:
    got = statistics(np.array([1.0, math.nan, 0.0]))
    assert got.mean == 0.5
    assert got.recall == pytest.approx(1 / 3)


def test_the_average_is_over_objects() -> None:
    pairs = [(statistics(np.full(4, j)), statistics(np.full(4, f))) for j, f in ((1.0, 0.5), (0.0, 0.25))]
    got = combine(pairs)
    assert got["J"]["mean"] == 0.5
    assert got["F"]["mean"] == 0.375
    assert got["J&F"] == 0.4375


def test_published_masks_score_the_official_numbers(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "davis_osvos"
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    # Two sequences, for time; `davis-score` shows the same for all eight.
    names = ["car-shadow", "motocross-jump"]
    got = score_results(open_davis(shared_dir / "data" / "davis", "2016", sequences=names), folder)
    for name in names:
        for measure in "JF":
            assert got["sequences"][name][measure] == pytest.approx(expected["sequences"][name][measure], abs=1e-9)
        assert got["sequences"][name]["frames"] == expected["sequences"][name]["frames"]
