"""Presentation times of a stream that is opened again now and then, and when a frame that came early is due."""

from __future__ import annotations

from typing import Final

_LONGEST_STEP_SECONDS: Final = 10.0
"""A step in a stream's times that is longer, or back, is a new start of its clock."""
_LONGEST_GAP_SECONDS: Final = 3600.0
"""The same for recordings."""
_LATE_SECONDS: Final = 0.5
"""A frame that comes this much after its time moves the times of the frames after it."""


class StreamClock:
    """Times that begin at 0 and increase, whatever the stream's own clock does.

    Within a connection the stream's times count. Over a gap, and where its clock jumps, the time that has passed
    here counts.

    Args:
        believes_gaps: Whether a long step in the stream's times is time that passed in it, as in a recording.
    """

    def __init__(self, *, believes_gaps: bool = False) -> None:
        self._longest_step = _LONGEST_GAP_SECONDS if believes_gaps else _LONGEST_STEP_SECONDS
        self._offset: float | None = None
        self._last: float | None = None
        self._last_arrival = 0.0

    @property
    def last_seconds(self) -> float:
        """The time of the last frame; 0 before the first."""
        return 0.0 if self._last is None else self._last

    @property
    def last_arrival(self) -> float:
        """When the last frame came, on the monotonic clock."""
        return self._last_arrival

    def restart(self) -> None:
        """The stream was opened again, so its times may begin anywhere."""
        self._offset = None

    def seconds(self, stream_seconds: float | None, arrival: float) -> float:
        """The time of the next frame.

        Args:
            stream_seconds: As the stream counts; None without a time.
            arrival: When it came, on the monotonic clock.
        """
        following = 0.0 if self._last is None else self._last + max(arrival - self._last_arrival, 1e-3)
        if stream_seconds is None:
            found = following
        else:
            if self._offset is None or self._is_jump(stream_seconds + self._offset):
                self._offset = following - stream_seconds
            found = stream_seconds + self._offset
        self._last, self._last_arrival = found, arrival
        return found

    def _is_jump(self, seconds: float) -> bool:
        return self._last is not None and not 0 < seconds - self._last <= self._longest_step


class Pacer:
    """Tells how long to hold a frame that came before its time, for streams that come in bursts."""

    def __init__(self) -> None:
        self._origin: float | None = None

    def wait_seconds(self, seconds: float, now: float) -> float:
        """How long from ``now`` until a frame of time ``seconds`` is due; at most a few seconds."""
        if self._origin is None or now - (self._origin + seconds) > _LATE_SECONDS:
            self._origin = now - seconds
        return min(max(0.0, self._origin + seconds - now), _LONGEST_STEP_SECONDS)
