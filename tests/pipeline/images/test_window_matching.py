from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from pipeline.core.arrays import FloatArray, normalize_rows
from pipeline.images.window_matching import (
    Box,
    PointPairs,
    Side,
    WindowMatches,
    choose_agreed,
    corner_ranks,
    match_windows,
    object_size_px,
    transfer_points,
    window_box,
)

# The second image shows the first one moved by this much, at twice the scale.
MOVED = np.array([30.0, 10.0], np.float32)
SCALE = 2.0


def texture(points: FloatArray) -> FloatArray:
    """Unit descriptors that differ everywhere: random Fourier features of the place."""
    rng = np.random.default_rng(0)
    phase = points @ rng.normal(0, 0.15, (2, 64)).astype(np.float32)
    return normalize_rows(np.concatenate([np.cos(phase), np.sin(phase)], axis=1))


def side(image_hw: tuple[int, int], size_px: float, origin: Callable[[FloatArray], FloatArray]) -> Side:
    """An image whose descriptors are the texture where a point comes from; salient around its middle."""
    middle = np.array([image_hw[1] / 2, image_hw[0] / 2], np.float32)

    def describe(boxes: Sequence[Box]) -> list[tuple[FloatArray, FloatArray]]:
        found = []
        for x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= image_hw[1]
            assert 0 <= y0 < y1 <= image_hw[0]
            steps = np.linspace(0, 1, 24, endpoint=False) + 1 / 48
            grid = np.stack(np.meshgrid(x0 + steps * (x1 - x0), y0 + steps * (y1 - y0)), axis=-1)
            points = grid.reshape(-1, 2).astype(np.float32)
            found.append((texture(origin(points)), points))
        return found

    return Side(
        image_hw=image_hw,
        size_px=size_px,
        saliency_at=lambda xy: (np.linalg.norm(xy - middle, axis=1) < size_px).astype(np.float32),
        detail_at=lambda xy: np.ones(len(xy), np.float32),
        descriptors_at=lambda xy: texture(origin(xy)),
        describe=describe,
    )


@pytest.fixture
def sides() -> tuple[Side, Side]:
    first = side((120, 160), 50.0, lambda xy: xy)
    return first, side((260, 380), 100.0, lambda xy: np.asarray((xy - MOVED) / SCALE, np.float32))


def xy(values: Sequence[Sequence[float]]) -> FloatArray:
    return np.reshape(np.array(values, np.float32), (-1, 2))


def pairs(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> PointPairs:
    return PointPairs(xy(first), xy(second))


def errors_px(found: PointPairs) -> FloatArray:
    return np.asarray(np.linalg.norm(found.first_xy * SCALE + MOVED - found.second_xy, axis=1), np.float32)


def test_pairs_follow_the_true_map_and_keep_apart(sides: tuple[Side, Side]) -> None:
    # Anchors that are off by a third of the object's size.
    anchors = pairs([[80, 60], [60, 50]], [[190 + 30, 130], [150, 110 - 30]])
    seen = match_windows(sides, anchors, threshold=0.5)
    assert np.bincount(seen.window).max() <= 128, "memory grows with the square of the pairs"
    found = choose_agreed(sides, seen, 6)
    assert len(found) == 6
    assert np.median(errors_px(found)) < 4
    assert errors_px(found).max() < 10
    for points, size in ((found.first_xy, 50.0), (found.second_xy, 100.0)):
        gaps = np.linalg.norm(points[:, None] - points[None], axis=2)[np.triu_indices(6, 1)]
        assert gaps.min() > 0.08 * size
    assert all(s.saliency_at(xy).all() for s, xy in zip(sides, (found.first_xy, found.second_xy), strict=True))


def test_a_wrong_anchor_is_outvoted(sides: tuple[Side, Side]) -> None:
    right = [[80.0, 60.0], [70.0, 65.0], [90.0, 55.0], [80.0, 70.0]]
    true = (np.array(right) * SCALE + MOVED).tolist()
    anchors = pairs([*right, [60.0, 40.0]], [*true, [250.0, 200.0]])
    found = choose_agreed(sides, match_windows(sides, anchors, threshold=0.5), 4)
    assert errors_px(found).max() < 10


def test_detail_decides_between_places_that_agree_alike(sides: tuple[Side, Side]) -> None:
    first = xy([[70, 60], [90, 60]])
    seen = WindowMatches(first, np.asarray(first * SCALE + MOVED, np.float32), np.array([0, 0]))
    at_right = Side(
        **{name: getattr(sides[0], name) for name in ("image_hw", "size_px", "saliency_at", "descriptors_at")},
        detail_at=lambda xy: np.where(xy[:, 0] > 80, 1, 0.1).astype(np.float32),
        describe=sides[0].describe,
    )
    assert choose_agreed((at_right, sides[1]), seen, 1).first_xy.tolist() == [[90, 60]]


def test_given_points_are_led_by_pairs_seen_near_them(sides: tuple[Side, Side]) -> None:
    points = xy([[80, 60], [70, 55], [5, 5]])
    truth = np.asarray(points * SCALE + MOVED, np.float32)
    lost = xy([[330, 20], [40, 240], [7, 9]])
    anchors = pairs([*points[:2].tolist(), [60, 40]], [*truth[:2].tolist(), [250, 200]])
    seen = match_windows(sides, anchors, threshold=0.5)
    led = transfer_points(sides, seen, points, lost)
    assert np.linalg.norm(led[:2] - truth[:2], axis=1).max() < 6
    # Nothing was seen near the third, outside the foreground.
    assert led[2].tolist() == lost[2].tolist()
    nothing = WindowMatches(xy([]), xy([]), np.zeros(0, np.int64))
    assert (transfer_points(sides, nothing, points, lost) == lost).all()


def test_nothing_comes_of_nothing(sides: tuple[Side, Side]) -> None:
    none = pairs([], [])
    assert len(match_windows(sides, none, threshold=0.5)) == 0
    assert len(choose_agreed(sides, match_windows(sides, none, threshold=0.5), 5)) == 0
    outside = pairs([[5, 5]], [[5, 5]])
    assert len(match_windows(sides, outside, threshold=2.0)) == 0


def test_windows_stay_in_the_image() -> None:
    assert window_box((50, 40), 10, (80, 100)) == (40, 30, 60, 50)
    assert window_box((99, 79), 10, (80, 100)) == (80, 60, 100, 80)
    assert window_box((10, 10), 500, (80, 100)) == (0, 0, 80, 80)
    assert window_box((0, 0), 0.1, (80, 100)) == (0, 0, 2, 2)


def test_corners_outrank_edges_and_edges_flat_ground() -> None:
    image = np.full((120, 120, 3), 40, np.uint8)
    image[40:80, 40:80] = 200
    ranks = corner_ranks(image, 50.0, np.ones((120, 120), bool))
    assert ranks[38:43, 38:43].mean() > 0.97
    assert ranks[38:43, 38:43].mean() > ranks[40, 55:65].mean() + 0.05
    assert ranks[:20, :20].max() < 0.05
    assert object_size_px(np.full((3, 3), 1.0, np.float32), (30, 30)) == 30.0
