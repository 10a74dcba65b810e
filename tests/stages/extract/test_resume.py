"""The extract stage stopped, saved, loaded into a new object and continued gives the same bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.core.config import load_config
from pipeline.core.records import Frame, Packet
from pipeline.core.state import State, load_state, packet_state, save_state
from stages.extract import ExtractConfig, Extractor
from tests.stages.extract.test_stage import BASE, Forgetful, features_of, frames, tiny


def make(limit: int | None = None, **settings: Any) -> Extractor:
    backbone = tiny()
    if limit is not None:
        Forgetful(backbone, limit)
    return Extractor(load_config(ExtractConfig, BASE | settings), backbone=backbone)


def stopped_at(extractor: Extractor, source: list[Frame], count: int) -> tuple[list[Packet], State]:
    """The packets before the stage asks for frame ``count``, and its state at that moment."""
    states: list[State] = []

    def feed() -> Iterator[Frame]:
        yield from source[:count]
        states.append(extractor.state())
        raise KeyboardInterrupt

    packets: list[Packet] = []
    with pytest.raises(KeyboardInterrupt):
        packets.extend(_collect(extractor(feed()), packets))
    return packets, states[0]


def _collect(stream: Iterable[Packet], into: list[Packet]) -> Iterator[Packet]:
    for packet in stream:
        into.append(packet)
    yield from ()


def assert_same(found: list[Packet], expected: list[Packet]) -> None:
    assert [packet.index for packet in found] == [packet.index for packet in expected]
    for mine, theirs in zip(found, expected, strict=True):
        one, other = packet_state(mine)["features"], packet_state(theirs)["features"]
        for name in ("data", "saliency", "cls"):
            assert (one[name] is None) == (other[name] is None)
            assert one[name] is None or torch.equal(one[name], other[name])
        assert one["grid"] == other["grid"]
        assert one["extra"].keys() == other["extra"].keys()
        assert all(torch.equal(one["extra"][name], other["extra"][name]) for name in one["extra"])


@pytest.mark.parametrize("count", [0, 1, 4, 5, 7, 8, 11])
@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({"saliency": "ncut", "cls": "facet", "facets": ["key@1", "token@0"]}, None),
        ({"drop_high_variance": 8, "normalize": True, "batch_size": 3}, None),
        ({"repair": "smooth", "log_bins": 1}, None),
        ({"batch_size": 8}, 2),
    ],
    ids=["batches", "sample", "smoothing", "memory"],
)
def test_a_resumed_video_gives_the_same_bits(
    tmp_path: Path, settings: dict[str, Any], limit: int | None, count: int
) -> None:
    source = [*frames(9), *(Frame(f.image, 9 + f.index, 1.0) for f in frames(11, (60, 40)))]
    whole = make(limit, **settings)
    expected = list(whole(source))
    before, state = stopped_at(make(limit, **settings), source, count)
    save_state(tmp_path, "extract", state)
    resumed = make(limit, **settings)
    resumed.restore(load_state(tmp_path, "extract"))
    assert_same([*before, *resumed(source[count:])], expected)
    assert resumed.report() == whole.report()
    assert resumed.warnings == whole.warnings


@pytest.mark.parametrize("settings", [{}, {"drop_high_variance": 8}, {"repair": "smooth"}])
def test_the_next_video_is_extracted_as_by_a_new_stage(settings: dict[str, Any]) -> None:
    first, second = frames(5), frames(6, (60, 40))
    used = make(**settings)
    list(used(first))
    fresh = make(**settings)
    assert_same(list(used(second)), list(fresh(second)))
    assert used.report() == fresh.report()


def test_a_video_left_in_the_middle_leaves_nothing_behind() -> None:
    used = make(drop_high_variance=8)
    stopped_at(used, frames(7), 6)
    used.reset()
    assert_same(list(used(frames(3))), list(make(drop_high_variance=8)(frames(3))))


def test_the_frame_in_work_is_known_when_a_batch_fails() -> None:
    extractor = make(limit=0, batch_size=2)
    assert extractor.current_index is None
    source = frames(6)
    with pytest.raises(torch.OutOfMemoryError):
        list(extractor(iter(source[2:])))
    assert extractor.current_index == 2


def test_a_value_that_is_not_finite_names_its_frame_and_facet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.extract.parts.PART", 16)
    extractor = make(facets=["key@1", "token@1"])
    forward = extractor.backbone.forward

    def broken(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.maps["token@1"][2, 5, 0, 1] = float("nan")
        return output

    extractor.backbone.forward = broken  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match="frame 2: 1 of 288 values of token@1 are not finite"):
        list(extractor(frames(4)))
    assert extractor.current_index == 2


def test_a_very_long_frame_is_scaled_down_with_one_warning() -> None:
    extractor = make(max_cells=60)
    packets = list(extractor(frames(5, (10, 1000))))
    assert features_of(packets[0]).grid.grid_hw == (1, 60)
    (line,) = extractor.warnings
    assert "10 x 1000 px would be 32 x 3200 px" in line
    assert "scaled down to 16 x 960 px" in line


@pytest.mark.parametrize("cue", ["ncut", "first_pc", "cls_attention"])
def test_an_input_of_one_patch_works(cue: str) -> None:
    (packet,) = make(input_hw=[16, 16], saliency=cue)(frames(1))
    found = features_of(packet)
    assert found.data.shape == (48, 1, 1)
    assert found.saliency is not None
    assert bool(found.saliency.isfinite().all())
