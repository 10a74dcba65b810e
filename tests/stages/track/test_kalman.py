from __future__ import annotations

import numpy as np
import pytest

from stages.track import kalman
from stages.track.kalman import AdaptiveNoise, MotionNoise, MotionState

NOISE = MotionNoise(0.03, 0.02, 2.0, 0.5, 5.0, 2.0)


def box(x: float = 100.0, y: float = 80.0, width: float = 40.0, height: float = 60.0) -> np.ndarray:
    return np.array([[x - width / 2, y - height / 2, x + width / 2, y + height / 2]])


def test_center_form_and_back() -> None:
    boxes = np.array([[3.0, 4.0, 13.0, 24.0], [0.0, 0.0, 2.0, 8.0]])
    np.testing.assert_allclose(kalman.from_center(kalman.to_center(boxes)), boxes)


def test_a_box_that_moves_steadily_is_predicted_where_it_will_be() -> None:
    state = kalman.initiate(box(x=100), NOISE)
    for step in range(1, 20):
        state, _ = kalman.update(kalman.predict(state, 0.1, NOISE), box(x=100 + 5 * step), NOISE)
    ahead = kalman.predict(state, 0.3, NOISE)
    np.testing.assert_allclose(ahead.xyxy, box(x=100 + 5 * 22), atol=0.5)


def test_one_long_step_equals_many_short_ones() -> None:
    """Time, not the number of frames, decides how uncertain a prediction is."""
    start, _ = kalman.update(kalman.predict(kalman.initiate(box(), NOISE), 0.1, NOISE), box(x=104), NOISE)
    # Zero velocity of the size: the noise is in units of the size, which must not change on the way.
    start.mean[:, 2:, 1] = 0
    short = start
    for _ in range(5):
        short = kalman.predict(short, 0.04, NOISE)
    long = kalman.predict(start, 0.2, NOISE)
    np.testing.assert_allclose(short.mean, long.mean, rtol=1e-9)
    np.testing.assert_allclose(short.covariance, long.covariance, rtol=1e-9)


def test_update_equals_the_textbook_formula() -> None:
    state = kalman.predict(kalman.initiate(box(), NOISE), 0.1, NOISE)
    seen = box(x=109, y=77, width=44, height=58)
    updated, innovations = kalman.update(state, seen, NOISE)
    measure = np.array([[1.0, 0.0]])
    stds = np.array([44 * 0.03, 58 * 0.03, 44 * 0.02, 58 * 0.02])
    for axis, value in enumerate(kalman.to_center(seen)[0]):
        mean, covariance = state.mean[0, axis][:, None], state.covariance[0, axis]
        expected = measure @ covariance @ measure.T + stds[axis] ** 2
        gain = covariance @ measure.T @ np.linalg.inv(expected)
        innovation = value - measure @ mean
        np.testing.assert_allclose(updated.mean[0, axis], (mean + gain @ innovation)[:, 0])
        np.testing.assert_allclose(updated.covariance[0, axis], (np.eye(2) - gain @ measure) @ covariance)
        assert innovations[0, axis] == pytest.approx((innovation / np.sqrt(expected)).item())


def test_many_filters_at_once_equal_each_on_its_own() -> None:
    boxes = np.concatenate([box(), box(x=300, width=10), box(y=20, height=200)])
    together, _ = kalman.update(kalman.predict(kalman.initiate(boxes, NOISE), 0.2, NOISE), boxes + 3, NOISE)
    for n in range(3):
        one = kalman.predict(kalman.initiate(boxes[n : n + 1], NOISE), 0.2, NOISE)
        alone, _ = kalman.update(one, boxes[n : n + 1] + 3, NOISE)
        np.testing.assert_allclose(together.mean[n], alone.mean[0])
        np.testing.assert_allclose(together.covariance[n], alone.covariance[0])


def follow(boxes: np.ndarray, seconds: float, rate: float) -> tuple[np.ndarray, AdaptiveNoise]:
    """Filter ``(T, 4)`` boxes; the filtered ones and what was learned."""
    learned = AdaptiveNoise(rate, limit=32)
    state: MotionState = kalman.initiate(boxes[:1], NOISE)
    last, filtered = None, [boxes[0]]
    for seen in boxes[1:]:
        state = kalman.predict(state, seconds, learned.applied(NOISE))
        state, innovations = kalman.update(state, seen[None], NOISE)
        if last is not None:
            learned.update(last, innovations[0])
        last = innovations[0]
        filtered.append(state.xyxy[0])
    return np.array(filtered), learned


def test_a_wrong_frame_rate_is_compensated_by_larger_process_noise() -> None:
    """Frames a fifth of a second apart that claim to be 1/120 s apart: accelerations look 576 times too large."""
    times = np.arange(80) / 5
    boxes = np.concatenate([box(x=300 + 150 * np.sin(2 * time)) for time in times])
    lagging, _ = follow(boxes, 1 / 120, rate=0.0)
    learned, adaptive = follow(boxes, 1 / 120, rate=0.1)
    error = [np.abs(result[20:] - boxes[20:]).mean() for result in (lagging, learned)]
    assert adaptive.factor[0] > 4
    assert error[1] < error[0] / 2


def test_jitter_about_a_still_box_lowers_the_noise() -> None:
    random = np.random.default_rng(0)
    boxes = np.repeat(box(), 200, axis=0) + random.normal(0, 1.5, (200, 4))
    filtered, adaptive = follow(boxes, 1 / 24, rate=0.1)
    assert adaptive.factor[0] < 1
    assert np.abs(filtered[50:] - box()).mean() < 0.7 * np.abs(boxes[50:] - box()).mean()


def test_the_learned_factor_stays_within_its_limit() -> None:
    learned = AdaptiveNoise(rate=1.0, limit=4.0)
    for _ in range(50):
        learned.update(np.full(4, 3.0), np.array([3.0, 3.0, -3.0, -3.0]))
    assert learned.factor == pytest.approx((4.0, 0.25))
