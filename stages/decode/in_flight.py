"""How many frames may be between the input and the output, so that none of them takes longer than it may.

Every queue between two stages holds a frame back for as long as the slowest stage needs for one. So with the
newest frame in mind, few frames may be under way: as many as keep the slowest stage busy, and no more than arrive
in time. The number follows what is measured: it shrinks by a factor when a frame was late, and grows by a little
when frames are in time and had to wait for room (as TCP's window does: Chiu and Jain 1989).
"""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np

_START: Final = 2.0
_MOST: Final = 16.0
_GROWTH: Final = 0.25
_SHRINK: Final = 0.7
_TARGET: Final = 0.7
"""Share of the latency allowed that is aimed at: what is under way when a stage becomes slower takes longer."""
_REMEMBERED: Final = 1000


class InFlightLimit:
    """Frames under way and their latencies. Not thread-safe: the caller holds a lock.

    Args:
        max_latency_seconds: From a frame's arrival to its end.
    """

    def __init__(self, max_latency_seconds: float) -> None:
        self._max = max_latency_seconds
        self._limit = _START
        self._arrivals: dict[int, float] = {}
        self._was_full = False
        self._to_settle = 0
        self._recent: deque[float] = deque(maxlen=_REMEMBERED)
        self._longest = 0.0
        self._late = 0

    @property
    def count(self) -> int:
        """Frames under way."""
        return len(self._arrivals)

    def has_room(self) -> bool:
        """Whether another frame may go in."""
        room = len(self._arrivals) < int(self._limit)
        self._was_full = self._was_full or not room
        return room

    def begin(self, index: int, arrival: float) -> None:
        """A frame goes in."""
        self._arrivals[index] = arrival

    def forget(self, index: int) -> None:
        """A frame did not go in after all."""
        self._arrivals.pop(index, None)

    def end(self, index: int, now: float) -> None:
        """A frame has come out."""
        arrival = self._arrivals.pop(index, None)
        if arrival is None:
            return
        latency = now - arrival
        self._recent.append(latency)
        self._longest = max(self._longest, latency)
        self._late += latency > self._max
        self._to_settle = max(0, self._to_settle - 1)
        if latency > _TARGET * self._max:
            # The frames behind it went in under the old limit; they say nothing about the new one.
            if self._to_settle == 0:
                self._limit = max(1.0, self._limit * _SHRINK)
                self._to_settle = len(self._arrivals)
        elif self._was_full:
            self._limit = min(_MOST, self._limit + _GROWTH)
            self._was_full = False

    def report(self) -> dict[str, float | int | None]:
        """Latencies in seconds: the longest of all, and quantiles of the last 1000 frames."""
        median, high = (None, None)
        if self._recent:
            median, high = (round(float(value), 3) for value in np.quantile(self._recent, (0.5, 0.95)))
        return {
            "median": median,
            "p95": high,
            "max": round(self._longest, 3) if self._recent else None,
            "late_frames": self._late,
        }
