from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.records import Packet
from pipeline.core.state import State, load_state, save_state
from stages.cosegment import CosegmentConfig, Cosegmenter
from tests.stages.cosegment.scenes import FAST, moving_square


def shots() -> list[Packet]:
    """A shot, a cut inside the next warm-up, and the first scene again."""
    return [
        *moving_square(7),
        *moving_square(3, scene=1, first=7),
        *moving_square(6, scene=2, first=10),
        *moving_square(8, first=16),
    ]


def make(**options: object) -> Cosegmenter:
    return Cosegmenter(CosegmentConfig.model_validate({**FAST, **options}))


def through_disk(folder: Path, state: State) -> State:
    folder.mkdir(exist_ok=True)
    save_state(folder, "cosegment", state)
    return load_state(folder, "cosegment")


def interrupted(stage: Cosegmenter, packets: list[Packet], after: int) -> tuple[list[Packet], State]:
    """What comes out before the stage asks for packet ``after``, and its state at that moment."""
    states: list[State] = []

    def source() -> Iterator[Packet]:
        yield from packets[:after]
        states.append(stage.state())
        raise KeyboardInterrupt

    out: list[Packet] = []
    with pytest.raises(KeyboardInterrupt):
        collect(stage(source()), out)
    return out, states[0]


def collect(packets: Iterator[Packet], out: list[Packet]) -> None:
    """Append packet by packet, so that those before an error are kept."""
    for packet in packets:
        out.append(packet)


def assert_same(first: list[Packet], second: list[Packet]) -> None:
    assert [packet.index for packet in first] == [packet.index for packet in second]
    for a, b in zip(first, second, strict=True):
        assert a.parts is not None
        assert b.parts is not None
        np.testing.assert_array_equal(a.parts.index_mask, b.parts.index_mask)
        np.testing.assert_array_equal(a.parts.foreground, b.parts.foreground)
        np.testing.assert_array_equal(a.parts.part_ids, b.parts.part_ids)
        assert a.parts.num_parts == b.parts.num_parts
        assert (a.parts.proposals is None) == (b.parts.proposals is None)
        if a.parts.proposals is not None:
            np.testing.assert_array_equal(a.parts.proposals, b.parts.proposals)


@pytest.mark.parametrize("after", [0, 1, 3, 4, 5, 7, 8, 10, 12, 14, 19, 23, 24])
@pytest.mark.parametrize(
    "options",
    [{}, {"foreground": "vote"}, {"objects_every": 3}],
    ids=["discriminant", "vote", "objects"],
)
def test_a_restored_stage_goes_on_bit_for_bit(after: int, options: dict[str, object], tmp_path: Path) -> None:
    packets = shots()
    whole = make(**options)
    expected = list(whole(iter(packets)))
    before, state = interrupted(make(**options), packets, after)
    resumed = make(**options)
    resumed.restore(through_disk(tmp_path, state))
    assert_same([*before, *resumed(iter(packets[after:]))], expected)
    assert resumed.report() == whole.report()
    assert resumed.warnings == whole.warnings


@pytest.mark.parametrize("after", [0, 1, 9, 17])
def test_a_survey_resumes(after: int, tmp_path: Path) -> None:
    packets = list(moving_square(18))
    options = {"mode": "two_pass", "reservoir_frames": 5}
    whole = make(**options)
    expected = list(whole(packets))
    first = make(**options)
    for packet in packets[:after]:
        first.survey(packet)
    second = make(**options)
    second.restore(through_disk(tmp_path, first.state()))
    for packet in packets[after:]:
        second.survey(packet)
    second.finish_survey()
    before, state = interrupted(second, packets, after)
    third = make(**options)
    third.restore(through_disk(tmp_path, state))
    assert_same([*before, *third(iter(packets[after:]))], expected)
    assert third.report() == whole.report()


def test_two_passes_over_what_can_be_read_once_are_refused() -> None:
    stage = make(mode="two_pass")
    with pytest.raises(ValueError, match="read only once"):
        stage(moving_square(4))


def test_a_stage_is_used_once_until_it_is_reset() -> None:
    packets = shots()
    stage = make()
    expected = list(stage(iter(packets)))
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        stage(iter(packets))
    stage.reset()
    assert_same(list(stage(iter(packets))), expected)


def test_the_frame_being_worked_on_is_named_when_a_held_back_packet_fails() -> None:
    stage = make(warmup_frames=4)
    packets = list(moving_square(4))
    held = packets[2]
    assert held.features is not None
    out = stage(iter(packets))
    assert [next(out).index for _ in range(3)] == [0, 1, 2]
    assert stage.current_index == held.index


def test_the_report_is_bounded() -> None:
    stage = make(warmup_frames=1)
    cuts = [next(moving_square(1, scene=number % 2, first=number)) for number in range(300)]
    assert len(list(stage(iter(cuts)))) == 300
    report = stage.report()
    assert report["num_fits"] == 300
    assert len(report["fits"]) == 200


def test_parts_on_the_grid_are_made_only_when_asked_for() -> None:
    packets = list(make(part_ids=False)(moving_square(4)))
    assert all(packet.parts is not None and packet.parts.part_ids is None for packet in packets)


def test_the_key_of_the_spool_is_accepted_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="spool_folder"):
        CosegmentConfig.model_validate({"spool_folder": None})
