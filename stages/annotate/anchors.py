"""The point of a track that its trail follows: the centroid of its mask, or its box's center, smoothed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.core.records import LabelMap, Track

Point = tuple[float, float]

POSITION_GAIN = 0.36
VELOCITY_GAIN = 0.04
"""Gains of a critically damped filter that forgets a fifth of the past per frame (1 - 0.8^2 and (1 - 0.8)^2)."""

SAME_BOX_IOU = 0.5
"""From this IoU of a track's box and the box of the mask with its id on, the track is that mask's."""


@dataclass(slots=True)
class SmoothPoint:
    """Position and velocity of one point by an alpha-beta filter, the steady state of a Kalman filter.

    On the first frames the gains are those of a least-squares line through all points (Kalata 1984 calls it the
    growing-memory filter), so that steady motion is followed without lag from the second point on.

    Attributes:
        frame: Number of the latest frame with a measurement.
        x: In pixels.
        y: In pixels.
        vx: In pixels per frame.
        vy: In pixels per frame.
        measurements: How many there were.
    """

    frame: int
    x: float
    y: float
    vx: float = 0.0
    vy: float = 0.0
    measurements: int = 1

    def follow(self, frame: int, measured: Point) -> None:
        """Take the measurement of a later frame."""
        n, elapsed = self.measurements, frame - self.frame
        gain = max(POSITION_GAIN, 2.0 * (2 * n + 1) / ((n + 1) * (n + 2)))
        velocity_gain = max(VELOCITY_GAIN, 6.0 / ((n + 1) * (n + 2))) / elapsed
        x, y = self.x + elapsed * self.vx, self.y + elapsed * self.vy
        across, down = measured[0] - x, measured[1] - y
        self.x, self.y = x + gain * across, y + gain * down
        self.vx, self.vy = self.vx + velocity_gain * across, self.vy + velocity_gain * down
        self.frame, self.measurements = frame, n + 1

    def as_row(self) -> tuple[float, ...]:
        """The fields in order."""
        return astuple(self)

    @classmethod
    def from_row(cls, row: Sequence[float]) -> SmoothPoint:
        """The inverse of :meth:`as_row`."""
        frame, x, y, vx, vy, measurements = row
        return cls(int(frame), x, y, vx, vy, int(measurements))


def track_anchors(tracks: Sequence[Track], labels: LabelMap | None) -> list[Point]:
    """A point in pixels per track: the centroid of its mask where it comes from one, else its box's center.

    The centroid moves less than the box when a thin piece of the mask comes and goes.
    """
    return [_anchor(track, labels.index_mask if labels is not None else None) for track in tracks]


def _anchor(track: Track, mask: npt.NDArray[np.uint8] | None) -> Point:
    left, top, right, bottom = track.xyxy
    center = ((left + right) / 2, (top + bottom) / 2)
    if mask is None or track.track_id > 255:
        return center
    own = cv2.compare(mask, track.track_id, cv2.CMP_EQ)
    x, y, width, height = cv2.boundingRect(own)
    across = max(0.0, min(right, x + width) - max(left, x))
    down = max(0.0, min(bottom, y + height) - max(top, y))
    shared = across * down
    union = (right - left) * (bottom - top) + width * height - shared
    if not width or shared < SAME_BOX_IOU * union:
        return center
    moments = cv2.moments(own[y : y + height, x : x + width], binaryImage=True)
    # Moments count pixel centers, boxes are in continuous coordinates.
    return (x + moments["m10"] / moments["m00"] + 0.5, y + moments["m01"] / moments["m00"] + 0.5)
