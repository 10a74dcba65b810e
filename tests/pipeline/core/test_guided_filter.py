from __future__ import annotations

import numpy as np
import pytest

from pipeline.core.guided_filter import GuidedFilter, fast_guided_filter


def test_the_guided_filter_equals_a_regression_in_every_window() -> None:
    random = np.random.default_rng(0)
    guide, values = random.random((9, 8, 3), np.float32), random.random((9, 8), np.float32)
    radius, epsilon = 2, 0.01
    padded_guide = np.pad(guide, ((4, 4), (4, 4), (0, 0)), mode="symmetric").astype(np.float64)
    padded = np.pad(values, 4, mode="symmetric").astype(np.float64)
    slopes, intercepts = np.zeros((9, 8, 3)), np.zeros((9, 8))
    for y in range(9):
        for x in range(8):
            window = np.s_[y + 4 - radius : y + 5 + radius, x + 4 - radius : x + 5 + radius]
            colors, targets = padded_guide[window].reshape(-1, 3), padded[window].ravel()
            covariance = np.cov(colors.T, bias=True) + epsilon * np.eye(3)
            against = ((colors - colors.mean(0)) * (targets - targets.mean())[:, None]).mean(0)
            slopes[y, x] = np.linalg.solve(covariance, against)
            intercepts[y, x] = targets.mean() - slopes[y, x] @ colors.mean(0)
    inner = np.s_[2:-2, 2:-2]
    want = np.zeros((9, 8))
    for y in range(2, 7):
        for x in range(2, 6):
            window = np.s_[y - radius : y + radius + 1, x - radius : x + radius + 1]
            want[y, x] = slopes[window].mean((0, 1)) @ guide[y, x] + intercepts[window].mean()
    got = GuidedFilter(guide, radius_px=radius, epsilon=epsilon)(values)
    np.testing.assert_allclose(got[inner], want[inner], atol=1e-4)


def test_the_fast_filter_at_full_size_is_the_filter() -> None:
    random = np.random.default_rng(0)
    image, values = random.integers(0, 256, (12, 20, 3), np.uint8), random.random((2, 12, 20), np.float32)
    got = fast_guided_filter(image, values, radius_px=3, epsilon=1e-3)
    plain = GuidedFilter(np.asarray(image.astype(np.float32) / 255, np.float32), radius_px=3, epsilon=1e-3)
    np.testing.assert_allclose(got, np.stack([plain(v) for v in values]), atol=1e-6)


@pytest.mark.parametrize(("large", "size"), [(540, (96, 128)), (48, (48, 64))])
def test_the_fast_filter_follows_edges_that_the_maps_do_not_resolve(large: int, size: tuple[int, int]) -> None:
    image = np.zeros((96, 128, 3), np.uint8)
    image[:, 70:] = (200, 120, 40)
    maps = np.tile(np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32), (1, 6, 1))
    got = fast_guided_filter(image, maps, radius_px=8, small_side_px=48, large_side_px=large)[0]
    assert got.shape == size
    edge = 70 * size[1] // 128
    crossing = np.count_nonzero(got < 0.5, axis=1)
    assert np.abs(crossing - edge).max() <= max(2, size[1] * 3 // 128)  # the maps' own border is 6 of 128 px away
    flat = fast_guided_filter(image, np.full((1, 6, 8), 0.3, np.float32), radius_px=8)
    np.testing.assert_allclose(flat, 0.3, atol=1e-5)
