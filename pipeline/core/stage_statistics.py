"""What one stage of a run did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class StageStatistics:
    """What one stage did.

    Attributes:
        name: The stage's name.
        items: Items it has put out.
        busy_seconds: Time inside the stage's own code.
        input_wait_seconds: Time it waited for the stage before it.
        output_wait_seconds: Time it waited for room in its output queue.
        deepest_queue: Most items that ever waited in its output queue.
        last_index: ``index`` of the last item it took, or None.
        device_seconds: Time a device worked for it; None where that is not known.
    """

    name: str
    items: int = 0
    busy_seconds: float = 0.0
    input_wait_seconds: float = 0.0
    output_wait_seconds: float = 0.0
    deepest_queue: int = 0
    last_index: int | None = None
    device_seconds: float | None = None

    @property
    def longest_seconds(self) -> float:
        """Busy seconds of the stage's own code or of the device for it, whichever are more."""
        return max(self.busy_seconds, self.device_seconds or 0.0)
