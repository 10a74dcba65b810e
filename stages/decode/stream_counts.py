"""What a stream was like: frames that came and went, and the times without a connection."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outage:
    """A time without a connection.

    Attributes:
        after_frame: Index of the last frame before it.
        start_seconds: Presentation time of that frame.
        seconds: How long no frame came; None where none came again.
        attempts: How often the stream was opened for it.
        reason: What had happened.
    """

    after_frame: int
    start_seconds: float
    seconds: float | None
    attempts: int
    reason: str


@dataclass(slots=True)
class Counts:
    """Frames of a stream. Invariant: ``received = processed + all that were dropped`` once the input has ended.

    Attributes:
        received: Decoded frames, every ``decode.every``-th of them.
        processed: Handed to the stages.
        newer: Dropped for a newer one.
        too_old: Dropped because they were older than allowed when there was room.
        before_start: Dropped while the models were loaded.
        at_end: In the slot when the input was stopped.
        time_jumps: Steps in the stream's times by more than half a second: frames may be missing there.
        jumped_seconds: How long these were in all.
        repeated: Shown again by the server after a new connection; not counted as received.
    """

    received: int = 0
    processed: int = 0
    newer: int = 0
    too_old: int = 0
    before_start: int = 0
    at_end: int = 0
    time_jumps: int = 0
    jumped_seconds: float = 0.0
    repeated: int = 0

    @property
    def dropped(self) -> int:
        """All frames that were received and not processed."""
        return self.newer + self.too_old + self.before_start + self.at_end
