"""How long a card idles between its first and last work, from the profiler's trace."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEVICE_WORK = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
"""Categories of the trace's events that occupy a card."""
HOST_WORK = frozenset({"cpu_op"})
"""Operators on the host, in place of the card's work where there is none."""


@dataclass(frozen=True, slots=True)
class Idle:
    """What lies between the first and the last work in a trace.

    Attributes:
        span_seconds: From the start of the first to the end of the last.
        busy_seconds: During which at least one was running.
        longest_gap_seconds: The longest time without any.
    """

    span_seconds: float
    busy_seconds: float
    longest_gap_seconds: float

    @property
    def share(self) -> float:
        """Share of the span without work, in [0, 1]; 1 where there was none at all."""
        return 1 - self.busy_seconds / self.span_seconds if self.span_seconds else 1.0


def idle_time(intervals: Iterable[tuple[float, float]]) -> Idle:
    """Idle time between intervals of work, which may overlap.

    Args:
        intervals: Start and end of each, in seconds.

    >>> idle_time([(0.0, 2.0), (1.0, 3.0), (4.0, 5.0)])
    Idle(span_seconds=5.0, busy_seconds=4.0, longest_gap_seconds=1.0)
    """
    ordered = sorted(intervals)
    if not ordered:
        return Idle(0.0, 0.0, 0.0)
    first, reached = ordered[0][0], ordered[0][0]
    busy = longest = 0.0
    for start, end in ordered:
        longest = max(longest, start - reached)
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return Idle(reached - first, busy, longest)


def intervals_of(trace: Path, categories: frozenset[str]) -> list[tuple[float, float]]:
    """Start and end in seconds of a Chrome trace's complete events of some categories."""
    events: list[dict[str, Any]] = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    return [
        (event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6)
        for event in events
        if event.get("ph") == "X" and event.get("cat") in categories
    ]
