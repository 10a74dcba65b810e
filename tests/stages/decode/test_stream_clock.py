from __future__ import annotations

import pytest

from stages.decode.stream_clock import Pacer, StreamClock


def test_times_follow_the_stream_and_begin_at_0() -> None:
    clock = StreamClock()
    assert [clock.seconds(100 + i / 25, arrival=5 + i) for i in range(3)] == pytest.approx([0.0, 0.04, 0.08])


def test_over_a_new_connection_the_time_here_counts() -> None:
    clock = StreamClock()
    clock.seconds(50.0, arrival=10.0)
    clock.restart()
    assert clock.seconds(0.0, arrival=17.0) == pytest.approx(7.0)
    assert clock.seconds(0.04, arrival=17.5) == pytest.approx(7.04)


@pytest.mark.parametrize("jump", [-3.0, 0.0, 5000.0])
def test_a_clock_that_jumps_is_replaced_and_times_increase(jump: float) -> None:
    clock = StreamClock()
    clock.seconds(100.0, arrival=1.0)
    assert clock.seconds(100.0 + jump, arrival=1.5) == pytest.approx(0.5)
    assert clock.seconds(100.04 + jump, arrival=9.0) == pytest.approx(0.54)


def test_a_recording_keeps_its_gaps() -> None:
    clock = StreamClock(believes_gaps=True)
    clock.seconds(0.0, arrival=1.0)
    assert clock.seconds(300.0, arrival=1.1) == pytest.approx(300.0)


def test_without_times_the_time_here_counts() -> None:
    clock = StreamClock()
    assert [clock.seconds(None, arrival=arrival) for arrival in (3.0, 3.5, 3.5)] == pytest.approx([0, 0.5, 0.501])


def test_early_frames_are_held_until_they_are_due_and_late_ones_move_the_rest() -> None:
    pacer = Pacer()
    assert pacer.wait_seconds(0.0, now=10.0) == 0
    assert pacer.wait_seconds(2.0, now=10.0) == pytest.approx(2.0)
    assert pacer.wait_seconds(2.04, now=15.0) == 0  # three seconds late
    assert pacer.wait_seconds(2.54, now=15.0) == pytest.approx(0.5)
    assert pacer.wait_seconds(500.0, now=15.0) == pytest.approx(10.0)  # never longer
