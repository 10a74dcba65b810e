from __future__ import annotations

from stages.decode.timeline import REORDER_WINDOW, Timeline


def _timeline(times: list[int], suspects: tuple[int, ...] = (), **values: float) -> Timeline:
    timeline = Timeline(40, 10_000, **values)
    for number, pts in enumerate(times):
        timeline.add(pts, suspect=number in suspects)
    timeline.finish()
    return timeline


def _indices(timeline: Timeline, times: list[int]) -> list[int | None]:
    return [None if (place := timeline.place_of(pts)) is None else place.index for pts in times]


def test_packets_in_decoding_order_are_ranked_by_time() -> None:
    times = [0, 120, 40, 80, 240, 160, 200]
    assert _indices(_timeline(times), sorted(times)) == list(range(7))


def test_a_jump_without_a_sign_of_damage_is_a_variable_frame_rate() -> None:
    assert _indices(_timeline([0, 40, 400, 440]), [0, 40, 400, 440]) == [0, 1, 2, 3]


def test_a_jump_near_damage_moves_the_index_by_the_missing_frames() -> None:
    timeline = _timeline([0, 40, 400, 440], suspects=(2,))
    assert _indices(timeline, [0, 40, 400, 440]) == [0, 1, 10, 11]
    assert timeline.last is not None
    assert timeline.last.lost == 8


def test_a_jump_far_from_damage_or_beyond_belief_moves_it_by_one() -> None:
    times = [40 * n for n in range(2 * REORDER_WINDOW)]
    far = [*times, times[-1] + 400]
    assert _timeline(far, suspects=(0,)).place_of(far[-1]).index == len(times)  # type: ignore[union-attr]
    assert _indices(_timeline([0, 40, 50_000], suspects=(2,)), [50_000]) == [2]
    assert _indices(_timeline([0, 40, 120], suspects=(2,), shortest_jump_frames=2.5), [120]) == [2]


def test_a_time_that_goes_back_has_no_place() -> None:
    times = [40 * n for n in range(REORDER_WINDOW + 10)]
    timeline = _timeline([*times, 10])
    assert timeline.place_of(10) is None
    assert timeline.last is not None
    assert timeline.last.index == len(times) - 1


def test_packets_lost_at_the_start_count() -> None:
    timeline = Timeline(40, 10_000)
    timeline.lost_at_start = 2
    timeline.add(80)
    timeline.finish()
    assert (timeline.first_pts, _indices(timeline, [80])) == (0, [2])


def test_memory_is_bounded() -> None:
    timeline = Timeline(40, 10_000)
    for number in range(10_000):
        timeline.add(40 * number, suspect=number % 3 == 0)
        if timeline.last is not None:
            timeline.forget(timeline.last.index - 1)
    assert len(timeline._placed) <= 2
    assert len(timeline._by_pts) <= 2
    assert len(timeline._suspects) <= 3 * REORDER_WINDOW
