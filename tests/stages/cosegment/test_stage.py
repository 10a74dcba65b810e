from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipeline.core.grid import PatchGrid
from pipeline.core.records import Features, Frame, Packet
from stages.cosegment import CosegmentConfig, Cosegmenter
from tests.counting import Counted
from tests.stages.cosegment.scenes import CELL, FAST, SIZE, moving_square


def truth_of(index: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[3:8, 3 + index % 5 : 9 + index % 5] = True
    return np.kron(mask, np.ones((CELL, CELL), bool))


def run(packets: Iterator[Packet] | list[Packet], **options: object) -> tuple[list[Packet], Cosegmenter]:
    stage = Cosegmenter(CosegmentConfig.model_validate({**FAST, **options}))
    return list(stage(list(packets))), stage


@pytest.mark.parametrize(
    "options", [{}, {"mode": "two_pass"}, {"foreground": "vote"}, {"three_stage": True}, {"refine": "crf"}]
)
def test_object_is_foreground_in_every_frame_from_the_first(options: dict[str, object]) -> None:
    packets, stage = run(moving_square(10), **options)
    assert [packet.index for packet in packets] == list(range(10))
    for packet in packets:
        assert packet.parts is not None
        mask, truth = packet.parts.index_mask > 0, truth_of(packet.index)
        assert (mask & truth).sum() / (mask | truth).sum() > 0.7
    assert [fit["frame"] for fit in stage.report()["fits"]] == [0]


def test_parts_keep_their_numbers_and_are_reported() -> None:
    packets, stage = run(moving_square(12))
    left_half = set()
    for packet in packets:
        assert packet.parts is not None
        assert packet.parts.part_ids is not None
        left_half.add(int(packet.parts.part_ids[5, 3 + packet.index % 5 + 1]))
    assert len(left_half) == 1
    parts = stage.report()["parts"]
    assert [part["number"] for part in parts] == [1, 2]
    for part in parts:
        assert (part["first_frame"], part["last_frame"]) == (0, 11)
        assert part["mean_area_px"] == pytest.approx(15 * CELL * CELL, rel=0.4)
        assert part["color"].startswith("#")


def test_at_most_the_warm_up_is_held_back() -> None:
    source = Counted(moving_square(12))
    for given, _ in enumerate(Cosegmenter(CosegmentConfig.model_validate(FAST))(source)):
        assert source.taken - given <= 4


def test_cut_refits_at_the_cut_and_a_scene_that_returns_gets_its_numbers_back() -> None:
    shots = [
        *moving_square(8),
        *moving_square(8, scene=1, first=8),
        *moving_square(8, first=16),
    ]
    packets, stage = run(shots)
    fits = stage.report()["fits"]
    assert [(fit["frame"], fit["reason"]) for fit in fits] == [(0, "start"), (8, "cut"), (16, "cut")]
    assert sorted(fits[2]["parts"]) == sorted(fits[0]["parts"])
    assert not set(fits[1]["parts"]) & set(fits[0]["parts"])
    assert len(packets) == 24


def test_cut_inside_the_warm_up_flushes_what_waits() -> None:
    packets, stage = run([*moving_square(2), *moving_square(6, scene=1, first=2)])
    assert [packet.index for packet in packets] == list(range(8))
    assert [fit["frame"] for fit in stage.report()["fits"]] == [0, 2]


def test_a_jump_in_the_first_frames_makes_no_parts_of_its_own() -> None:
    shots = [*moving_square(2), *moving_square(14, scene=1, first=2)]
    packets, stage = run(shots, warmup_frames=12)
    assert [packet.index for packet in packets] == list(range(16))
    assert [fit["frame"] for fit in stage.report()["fits"]] == [0]
    assert len(stage.report()["parts"]) <= 2
    _, separate = run(shots, warmup_frames=4)
    assert len(separate.report()["parts"]) == 4


@pytest.mark.parametrize("mode", ["streaming", "two_pass"])
@pytest.mark.parametrize("foreground", ["discriminant", "vote"])
def test_nothing_salient_gives_empty_parts_and_says_so(mode: str, foreground: str) -> None:
    still = [next(moving_square(1, salient=False)) for _ in range(6)]
    packets, stage = run(still, mode=mode, foreground=foreground)
    for packet in packets:
        assert packet.parts is not None
        assert not packet.parts.index_mask.any()
        assert packet.parts.part_ids is not None
        assert not packet.parts.part_ids.any()
    assert any("nothing salient" in line for line in stage.warnings)
    assert stage.report()["parts"] == []


@pytest.mark.parametrize("mode", ["streaming", "two_pass"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_streams_shorter_than_the_warm_up_come_through(mode: str, count: int) -> None:
    packets, stage = run(moving_square(count), mode=mode)
    assert len(packets) == count
    assert all(packet.parts is not None for packet in packets)
    assert stage.report()["mode"] == mode


def constant_packets(value: float) -> list[Packet]:
    grid = PatchGrid.from_input((16, 16), (16, 16), patch_px=8, stride_px=8)
    image = np.full((16, 16, 3), 128, np.uint8)
    saliency = torch.full((2, 2), 0.5)
    return [Packet(Frame(image, i, 0.0), Features(torch.full((4, 2, 2), value), grid, saliency)) for i in range(6)]


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_constant_or_broken_features_give_no_nan(value: float) -> None:
    """Constant features have no parts; features that are not finite are an error, not a result."""
    for foreground in ("discriminant", "vote"):
        if np.isnan(value):
            with pytest.raises(ValueError, match=r"frame 0: .*facet.*NaN"):
                run(constant_packets(value), foreground=foreground)
            continue
        for packet in run(constant_packets(value), foreground=foreground)[0]:
            assert packet.parts is not None
            assert np.isfinite(packet.parts.foreground).all()
            assert not packet.parts.index_mask.any()


def test_fewer_descriptors_than_clusters_do_not_crash() -> None:
    grid = PatchGrid.from_input((16, 24), (16, 24), patch_px=8, stride_px=8)
    rng = np.random.default_rng(0)
    data = torch.from_numpy(rng.standard_normal((4, 2, 3))).float()
    saliency = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    packet = Packet(Frame(np.zeros((16, 24, 3), np.uint8), 0, 0.0), Features(data, grid, saliency))
    for foreground in ("discriminant", "vote"):
        out, _ = run([packet], foreground=foreground, num_parts=8, max_clusters=14)
        assert out[0].parts is not None
        assert np.isfinite(out[0].parts.foreground).all()


def test_the_number_of_parts_is_found_when_none_is_given() -> None:
    packets, _ = run(moving_square(6), num_parts=None)
    assert packets[0].parts is not None
    assert packets[0].parts.num_parts >= 2


def test_packet_without_features_is_refused() -> None:
    frame = Frame(np.zeros((16, 16, 3), np.uint8), 0, 0.0)
    with pytest.raises(ValueError, match="after extract"):
        run([Packet(frame)])
