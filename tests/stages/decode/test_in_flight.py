from __future__ import annotations

import pytest

from stages.decode.in_flight import InFlightLimit


def simulate(
    stage_seconds: list[float], *, frames: int, max_latency: float, interval: float = 0.04
) -> list[float]:
    """Latencies in a flow of stages without queues that takes the newest frame whenever there is room."""
    limit = InFlightLimit(max_latency)
    free = [0.0] * len(stage_seconds)
    ends: list[tuple[float, int]] = []
    latencies, now = [], 0.0
    for index in range(frames):
        while True:
            for end, other in [entry for entry in ends if entry[0] <= now]:
                limit.end(other, end)
                ends.remove((end, other))
            if limit.has_room():
                break
            now = min(end for end, _ in ends)
        now = max(now, interval * index)
        limit.begin(index, now)
        at = now
        for number, seconds in enumerate(stage_seconds):
            at = max(at, free[number]) + seconds
            free[number] = at
        ends.append((at, index))
        latencies.append(at - now)
    return latencies


@pytest.mark.parametrize("slow", [0.05, 0.2, 0.4])
def test_behind_a_slow_stage_few_frames_are_under_way(slow: float) -> None:
    latencies = simulate([0.01, 0.01, slow, 0.01], frames=200, max_latency=1.0)
    assert max(latencies) <= 1.0


def test_a_slow_stage_is_kept_busy() -> None:
    """Two stages of equal length need two frames under way; with one the flow would be half as fast."""
    latencies = simulate([0.1, 0.1, 0.1], frames=200, max_latency=1.0)
    assert max(latencies) <= 1.0
    limit = InFlightLimit(1.0)
    for index in range(3):
        if limit.has_room():
            limit.begin(index, 0.0)
    assert limit.count == 2


def test_a_flow_that_is_too_slow_works_on_one_frame_at_a_time() -> None:
    latencies = simulate([0.5, 1.5], frames=60, max_latency=1.0)
    assert latencies[-1] == pytest.approx(2.0)


def test_the_report_counts_late_frames() -> None:
    limit = InFlightLimit(1.0)
    for index, seconds in enumerate((0.2, 0.4, 3.0)):
        limit.begin(index, 0.0)
        limit.end(index, seconds)
    limit.end(99, 5.0)  # was never under way
    report = limit.report()
    assert (report["median"], report["max"], report["late_frames"]) == (0.4, 3.0, 1)
    assert InFlightLimit(1.0).report()["max"] is None
