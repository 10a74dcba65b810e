"""A constant-velocity Kalman filter for boxes, all tracks at once, in seconds.

Source: the motion model of SORT (Bewley et al. 2016, section 3.2, https://arxiv.org/abs/1602.00763) with the box
as (center x, center y, width, height) as in BoT-SORT (Aharon et al. 2022, section 3.1,
https://arxiv.org/abs/2206.14651): unlike SORT's area and ratio, width and height are observed directly.

Differs from the reference: the four numbers are four independent filters of (value, velocity), because no noise
couples them; and time is in seconds with the noise of a continuous white acceleration, so a prediction over a
fifth of a second is as uncertain as five over a twenty-fifth, whatever the frame rate. All noises are in units
of the box's own width (x, width) and height (y, height).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MotionNoise:
    """Standard deviations, in units of the box's width and height.

    Attributes:
        measurement: Of a detection's center.
        measurement_size: Of a detection's width and height.
        acceleration: Of the center's white acceleration, per second^1.5.
        acceleration_size: The same for width and height.
        velocity: Of the unknown velocity of a new track's center, per second.
        velocity_size: The same for width and height.
    """

    measurement: float
    measurement_size: float
    acceleration: float
    acceleration_size: float
    velocity: float
    velocity_size: float


@dataclass(slots=True)
class MotionState:
    """Filters of N boxes.

    Attributes:
        mean: ``(N, 4, 2)``: value and velocity per second of (center x, center y, width, height) in pixels.
        covariance: ``(N, 4, 2, 2)``.
    """

    mean: Array
    covariance: Array

    def __len__(self) -> int:
        return int(self.mean.shape[0])

    @property
    def xyxy(self) -> Array:
        """Boxes ``(N, 4)`` in pixels; sizes are kept positive."""
        return from_center(self.mean[:, :, 0])


def to_center(xyxy: npt.NDArray[np.floating]) -> Array:
    """Boxes ``(N, 4)`` as (center x, center y, width, height), float64.

    >>> to_center(np.array([[0.0, 2.0, 4.0, 8.0]])).tolist()
    [[2.0, 5.0, 4.0, 6.0]]
    """
    boxes = np.asarray(xyxy, np.float64)
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def from_center(boxes: Array) -> Array:
    """Inverse of :func:`to_center`; a size below one pixel becomes one."""
    half = np.maximum(boxes[:, 2:], 1.0) / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def initiate(xyxy: npt.NDArray[np.floating], noise: MotionNoise) -> MotionState:
    """Filters for newly seen boxes ``(N, 4)``: at the box, velocity zero but unknown."""
    boxes = to_center(xyxy)
    mean = np.stack([boxes, np.zeros_like(boxes)], axis=2)
    covariance = np.zeros((*boxes.shape, 2, 2))
    scale = _scale(boxes)
    covariance[..., 0, 0] = (scale * _pairs(noise.measurement, noise.measurement_size)) ** 2
    covariance[..., 1, 1] = (scale * _pairs(noise.velocity, noise.velocity_size)) ** 2
    return MotionState(mean, covariance)


def predict(state: MotionState, seconds: float, noise: MotionNoise) -> MotionState:
    """Where the boxes are ``seconds`` later.

    The covariance grows by the integral of white acceleration over the step,
    ``q [[t^3 / 3, t^2 / 2], [t^2 / 2, t]]``, which is the same for one step as for several that add up to it.
    """
    step = np.array([[1.0, seconds], [0.0, 1.0]])
    growth = np.array([[seconds**3 / 3, seconds**2 / 2], [seconds**2 / 2, seconds]])
    density = (_scale(state.mean[:, :, 0]) * _pairs(noise.acceleration, noise.acceleration_size)) ** 2
    mean = state.mean @ step.T
    covariance = step @ state.covariance @ step.T + density[..., None, None] * growth
    return MotionState(mean, covariance)


def update(state: MotionState, xyxy: npt.NDArray[np.floating], noise: MotionNoise) -> tuple[MotionState, Array]:
    """The filters after box ``n`` of ``(N, 4)`` was seen for filter ``n``.

    Returns:
        The filters, and the innovations ``(N, 4)``: how far each value was from its prediction, in units of the
        standard deviation that was expected of it.
    """
    boxes = to_center(xyxy)
    variance = (_scale(boxes) * _pairs(noise.measurement, noise.measurement_size)) ** 2
    innovation = boxes - state.mean[..., 0]
    expected = state.covariance[..., 0, 0] + variance
    gain = state.covariance[..., 0] / expected[..., None]
    mean = state.mean + gain * innovation[..., None]
    covariance = state.covariance - gain[..., :, None] * state.covariance[..., None, 0, :]
    return MotionState(mean, covariance), innovation / np.sqrt(expected)


class AdaptiveNoise:
    """Adaptive process noise: scales the assumed acceleration noise until it fits the boxes of this video.

    Successive innovations of an optimal filter are uncorrelated (Mehra 1970,
    https://doi.org/10.1109/TAC.1970.1099422). Innovations of equal sign mean that the filter lags behind: the
    acceleration noise is too small, because objects or the camera accelerate, or because the frame rate in the
    file is wrong. Innovations of alternating sign mean that it follows the detector's jitter. The factor rises or
    falls until neither is the case, separately for centers and sizes. It rises up to twice as fast as it falls,
    because a lagging box costs more than a jittering one.

    Args:
        rate: Change of the factor's logarithm per box with fully correlated innovations; 0 keeps it at 1.
        limit: The factor stays within ``1 / limit`` and ``limit``.
    """

    def __init__(self, rate: float, limit: float) -> None:
        self._rate = rate
        self._limit = float(np.log(limit))
        self.log_factor = np.zeros(2)

    @property
    def factor(self) -> tuple[float, float]:
        """Factors of the acceleration noise of centers and of sizes."""
        center, size = np.exp(self.log_factor)
        return float(center), float(size)

    def update(self, last: Array, now: Array) -> None:
        """Take the innovations ``(4,)`` of one box in two successive frames."""
        product = (last * now).reshape(2, 2).mean(axis=1)
        self.log_factor = np.clip(self.log_factor + self._rate * product.clip(-1, 2), -self._limit, self._limit)

    def applied(self, noise: MotionNoise) -> MotionNoise:
        """The noise with scaled accelerations."""
        center, size = self.factor
        return replace(
            noise,
            acceleration=noise.acceleration * center,
            acceleration_size=noise.acceleration_size * size,
        )


def _scale(boxes: Array) -> Array:
    """Width and height (at least a pixel) beside (x, y, width, height), ``(N, 4)``."""
    return np.tile(np.maximum(boxes[:, 2:], 1.0), 2)


def _pairs(center: float, size: float) -> Array:
    return np.array([center, center, size, size])
