from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from pipeline.core.config import load_config
from pipeline.core.errors import ConfigError, MaskError
from pipeline.core.records import Features, Frame, Packet, PartMap, PatchGrid
from pipeline.core.state import load_state, save_state
from stages.propagate import Propagator
from stages.propagate.config import PropagateConfig

GRID = PatchGrid((48, 64), (12, 16), (4.0, 4.0), (2.0, 2.0))
Mask = npt.NDArray[np.uint8]
RED, BLUE = np.array([200, 60, 30], np.uint8), np.array([60, 90, 160], np.uint8)


def config(**values: Any) -> PropagateConfig:
    """DINO's protocol, which neither softens nor refines, and what a test changes in it."""
    return load_config(PropagateConfig, {"first_labels": "nearest", "refine": {"enabled": False}} | values)


def box(left: int, top: int, size: int = 12, number: int = 1, onto: Mask | None = None) -> Mask:
    mask = np.zeros(GRID.image_hw, np.uint8) if onto is None else onto.copy()
    mask[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = number
    return mask


def packets(truth: list[Mask], *, parts: dict[int, npt.NDArray[np.float32]] | None = None) -> Iterator[Packet]:
    """Frames whose descriptors say which object a cell belongs to, and for background where it lies."""
    generator = torch.Generator().manual_seed(0)
    descriptors = F.normalize(torch.randn(256, 32, generator=generator), dim=1)
    places = 0.3 * torch.randn(32, *GRID.grid_hw, generator=generator)
    for index, mask in enumerate(truth):
        objects = GRID.sample_nearest(torch.from_numpy(mask).long())
        data = descriptors[objects].permute(2, 0, 1) + places * (objects == 0)
        image = np.repeat(mask[..., None] * np.uint8(40), 3, axis=2)
        part = None
        if parts is not None and index in parts:
            foreground = parts[index]
            ids = (foreground > 0.5).astype(np.uint8)
            part = PartMap(ids, 1, np.kron(ids, np.ones((4, 4), np.uint8)), foreground)
        yield Packet(Frame(image, index, index / 24), features=Features(data, GRID), parts=part)


def carry(
    truth: list[Mask], masks: Mapping[int, Mask] | None, settings: PropagateConfig | None = None, **more: Any
) -> tuple[list[Packet], Propagator]:
    propagator = Propagator(settings or config(stretch="none"), masks=masks)
    return list(propagator(packets(truth, **more))), propagator


def iou(packet: Packet, truth: Mask, number: int) -> float:
    assert packet.labels is not None
    found, wanted = packet.labels.index_mask == number, truth == number
    return float((found & wanted).sum() / max((found | wanted).sum(), 1))


def test_masks_follow_their_objects() -> None:
    truth = [box(4 + 2 * t, 8, onto=box(40, 28 - t, number=7)) for t in range(10)]
    out, _ = carry(truth, {0: truth[0]})
    assert [packet.index for packet in out] == list(range(10))
    for packet, mask in zip(out, truth, strict=True):
        assert packet.labels is not None
        assert packet.labels.object_ids == (1, 7)
        assert iou(packet, mask, 1) > 0.5
        assert iou(packet, mask, 7) > 0.5


def test_the_first_mask_comes_out_as_it_was_given() -> None:
    mask = box(5, 7, size=11)
    mask[0, :5] = 255  # void belongs to no object
    out, _ = carry([mask], {0: mask})
    assert out[0].labels is not None
    np.testing.assert_array_equal(out[0].labels.index_mask, np.where(mask == 255, 0, mask))


def test_presets_of_the_references_agree_on_an_easy_video() -> None:
    truth = [box(4 + 2 * t, 8) for t in range(6)]
    for settings in (
        config(),
        config(window="disc", window_on_references=False, prefix_copies=4, keep_ties=False),
        config(first_labels="bilinear", stretch="pixel"),
        config(window="disc_inclusive", temperature=0.2),
        config(first_labels="area", label_cells=4, refine={"enabled": True}, prior_sigma_cells=4.0),
        config(upsample_factor=4),
        config(prior_sigma_cells=4.0, prior_motion=True),
        config(target_model={"weight": 0.5}),
        config(target_model={"mask_weight": 0.3}),
    ):
        out, _ = carry(truth, {0: truth[0]}, settings)
        assert iou(out[-1], truth[-1], 1) > 0.5, settings


def test_a_later_mask_adds_an_object_that_was_there_all_along() -> None:
    """The old frames, where nobody knew it, must not vote it away."""
    truth = [box(4 + 2 * t, 4, onto=box(44 - 2 * t, 30, number=2)) for t in range(14)]
    only_one = np.where(truth[0] == 1, truth[0], np.uint8(0))
    only_two = np.where(truth[5] == 2, truth[5], np.uint8(0))
    out, propagator = carry(truth, {0: only_one, 5: only_two})
    labels = [packet.labels for packet in out]
    assert [item.object_ids for item in labels if item is not None] == [(1,)] * 5 + [(1, 2)] * 9
    for index in range(5, 14):
        assert iou(out[index], truth[index], 1) > 0.5
        assert iou(out[index], truth[index], 2) > 0.5
    report = propagator.report()["objects"]
    assert [entry["first_frame"] for entry in report] == [0, 5]
    assert [entry["frames"] for entry in report] == [14, 9]


def test_a_later_mask_corrects_an_object() -> None:
    truth = [box(4 + 2 * t, 8) for t in range(10)]
    wrong = box(40, 30)
    out, _ = carry(truth, {0: wrong, 4: truth[4]})
    assert iou(out[3], truth[3], 1) < 0.1
    np.testing.assert_array_equal(out[4].labels.index_mask, truth[4])  # type: ignore[union-attr]
    assert iou(out[9], truth[9], 1) > 0.5


def test_an_object_that_leaves_and_returns_keeps_its_id() -> None:
    there, empty = box(8, 8), np.zeros(GRID.image_hw, np.uint8)
    truth = [there, there, *[empty] * 12, there, there]
    out, propagator = carry(truth, {0: there})
    assert [packet.labels.index_mask.any() for packet in out[2:14] if packet.labels] == [False] * 12
    assert iou(out[-1], there, 1) > 0.5
    confidence = [packet.labels.confidence[0] for packet in out if packet.labels]
    assert confidence[0] == 1.0
    assert max(confidence[2:14]) == 0.0
    assert confidence[-1] > 0.5
    summary = propagator.report()["objects"][0]
    assert summary["first_frame"] == 0
    assert summary["last_frame"] == 15
    assert summary["frames"] == 16
    assert (summary["min_confidence"], summary["worst_frame"]) == (0.0, 2)
    assert summary["mean_confidence"] == pytest.approx(sum(confidence) / 16, abs=1e-3)


def test_an_object_between_the_cells_is_kept_with_a_warning() -> None:
    mask = box(28, 28, size=1, number=3, onto=box(4, 4))
    for sampling in ("nearest", "area"):
        out, propagator = carry([mask] * 3, {0: mask}, config(first_labels=sampling))
        assert out[0].labels is not None
        assert float(out[0].labels.probs[2].max()) == 1.0
        assert "object 3 is smaller than a cell" in propagator.warnings[0]


def test_masks_of_frames_that_never_came_are_named() -> None:
    mask = box(8, 8)
    _, propagator = carry([mask] * 3, {0: mask, 7: mask, 5: mask})
    assert propagator.warnings == ["no frame came for the masks of 5, 7; they were not used"]


def test_references_are_bounded_and_the_first_stays() -> None:
    truth = [box(4 + t, 8) for t in range(12)]
    out, propagator = carry(truth, dict(enumerate(truth)), config(max_references=3))
    assert propagator.report()["references"] == [0, 10, 11]
    assert len(out) == 12
    assert "dropped" in propagator.warnings[0]


def test_objects_come_from_the_first_foreground() -> None:
    truth = [np.zeros(GRID.image_hw, np.uint8)] * 2 + [box(8 + 4 * t, 8) for t in range(4)]
    foreground = {
        index: GRID.sample_nearest(torch.from_numpy(mask)).numpy().astype(np.float32)
        for index, mask in enumerate(truth)
    }
    out, propagator = carry(truth, None, parts=foreground)
    assert [packet.labels.object_ids for packet in out if packet.labels] == [()] * 2 + [(1,)] * 4
    assert iou(out[-1], truth[-1], 1) > 0.5
    assert propagator.report()["objects"][0]["first_frame"] == 2


def test_discovery_finds_newcomers_and_leaves_known_objects_alone() -> None:
    truth = [box(4, 4, onto=box(44, 30, number=2) if t >= 4 else None) for t in range(9)]
    foreground = {
        index: (GRID.sample_nearest(torch.from_numpy(mask)) > 0).numpy().astype(np.float32)
        for index, mask in enumerate(truth)
    }
    once, _ = carry(truth, None, config(stretch="none", discover_every=0), parts=foreground)
    again, _ = carry(truth, None, config(stretch="none", discover_every=4), parts=foreground)
    assert once[-1].labels is not None
    assert once[-1].labels.object_ids == (1,)
    assert again[-1].labels is not None
    assert again[-1].labels.object_ids == (1, 2)
    assert iou(again[-1], truth[-1], 2) > 0.5


def test_discovery_corrects_the_mask_of_an_object_it_found_before() -> None:
    """What was taken for a part of the object at first, and is not, is dropped at the next look."""
    truth = [box(4, 4)] * 9
    wide = box(4, 4, onto=box(16, 4, size=8))
    foreground = {
        index: (GRID.sample_nearest(torch.from_numpy(wide if index < 4 else mask)) > 0).numpy().astype(np.float32)
        for index, mask in enumerate(truth)
    }
    once, _ = carry(truth, None, config(stretch="none", discover_every=0), parts=foreground)
    again, propagator = carry(truth, None, config(stretch="none", discover_every=4), parts=foreground)
    assert iou(once[-1], truth[-1], 1) < 0.8
    assert iou(again[-1], truth[-1], 1) > 0.95
    assert again[-1].labels is not None
    assert again[-1].labels.object_ids == (1,)
    assert propagator.warnings == []
    assert propagator.report()["references"] == [0, 8]


def test_a_foreground_unlike_the_object_corrects_nothing() -> None:
    truth = [box(4, 4, size=16)] * 6
    foreground = {
        index: (GRID.sample_nearest(torch.from_numpy(box(4, 4, size=16 if index < 3 else 8))) > 0)
        .numpy()
        .astype(np.float32)
        for index in range(6)
    }
    out, _ = carry(truth, None, config(stretch="none", discover_every=3), parts=foreground)
    assert iou(out[-1], truth[-1], 1) > 0.9


def test_without_objects_everything_is_background() -> None:
    out, propagator = carry([box(4, 4)] * 2, None)
    for packet in out:
        assert packet.labels is not None
        assert not packet.labels.index_mask.any()
        assert packet.labels.probs.shape == (1, *GRID.grid_hw)
    assert propagator.report()["objects"] == []


def test_confidence_falls_where_the_mask_is_lost() -> None:
    truth = [box(8, 8)] * 4
    found, propagator = carry(truth, {0: truth[0]})
    assert min(packet.labels.confidence[0] for packet in found if packet.labels) > 0.9
    assert propagator.report()["objects"][0]["min_confidence"] > 0.9
    assert found[-1].labels is not None
    assert len(found[-1].labels.confidence) == 1


def test_facets_are_looked_up_by_name() -> None:
    truth = [box(8, 8)] * 2
    with pytest.raises(ConfigError, match=r"'key@11' is not extracted; there are: data"):
        carry(truth, {0: truth[0]}, config(facets=["data", "key@11"]))


def test_color_keeps_apart_what_the_features_confuse() -> None:
    truth = [box(4 + 2 * t, 8) for t in range(8)]

    def alike() -> Iterator[Packet]:
        for packet in packets(truth):
            noise = torch.randn(32, *GRID.grid_hw, generator=torch.Generator().manual_seed(packet.index))
            image = np.where(packet.frame.image > 0, RED, BLUE)
            features = Features(1 + 0.1 * noise, GRID)
            yield replace(packet, frame=replace(packet.frame, image=image), features=features)

    found = {}
    for weight in (0.0, 0.5):
        out = list(Propagator(config(stretch="none", color_weight=weight), masks={0: truth[0]})(alike()))
        found[weight] = iou(out[-1], truth[-1], 1)
    assert found[0.0] < 0.3
    assert found[0.5] > 0.6


def test_packets_without_features_are_refused() -> None:
    with pytest.raises(ConfigError, match="switch extract on"):
        list(Propagator(config())([Packet(Frame(np.zeros((4, 4, 3), np.uint8), 0, 0.0))]))


def test_step_is_the_loop_and_masks_may_come_with_any_frame() -> None:
    truth = [box(4 + 2 * t, 8, onto=box(40, 28 - t, number=7)) for t in range(8)]
    later = np.where(truth[4] == 7, truth[4], np.uint8(0))
    first = np.where(truth[0] == 1, truth[0], np.uint8(0))
    want, _ = carry(truth, {0: first, 4: later})
    stepper = Propagator(config(stretch="none"))
    got = [stepper.step(packet, {0: first, 4: later}.get(packet.index)) for packet in packets(truth)]
    same_labels(got, want)


def same_labels(got: list[Packet], want: list[Packet]) -> None:
    assert [packet.index for packet in got] == [packet.index for packet in want]
    for ours, theirs in zip(got, want, strict=True):
        assert ours.labels is not None
        assert theirs.labels is not None
        assert torch.equal(ours.labels.probs, theirs.labels.probs)
        np.testing.assert_array_equal(ours.labels.index_mask, theirs.labels.index_mask)
        assert ours.labels.object_ids == theirs.labels.object_ids
        assert ours.labels.confidence == theirs.labels.confidence


STATEFUL = {
    "plain": config(stretch="none"),
    "videowalk": config(window="disc", window_on_references=False, prefix_copies=4, keep_ties=False),
    "parts and refinement": config(
        label_cells=4, first_labels="area", refine={"enabled": True}, prior_sigma_cells=4.0, prior_motion=True
    ),
    "target model": config(label_cells=2, first_labels="area", target_model={"weight": 0.5, "mask_weight": 0.3}),
    "color": config(stretch="none", color_weight=0.1),
}


@pytest.mark.parametrize("settings", STATEFUL.values(), ids=STATEFUL.keys())
@pytest.mark.parametrize("done", [0, 1, 3, 6, 9])
def test_a_restored_propagator_goes_on_bit_for_bit(settings: PropagateConfig, done: int, tmp_path: Path) -> None:
    truth = [box(4 + 2 * t, 8, onto=box(40, 28 - t, number=7)) for t in range(10)]
    masks = {0: np.where(truth[0] == 1, truth[0], np.uint8(0)), 5: truth[5], 20: truth[5]}
    whole = Propagator(settings, masks=masks)
    want = list(whole(packets(truth)))
    broken_off = Propagator(settings, masks=masks)
    start = list(itertools.islice(broken_off(packets(truth)), done))
    save_state(tmp_path, "propagate", broken_off.state())
    resumed = Propagator(settings, masks=masks)
    resumed.restore(load_state(tmp_path, "propagate"))
    same_labels(start + list(resumed(itertools.islice(packets(truth), done, None))), want)
    assert resumed.report() == whole.report()
    assert resumed.warnings == whole.warnings


@pytest.mark.parametrize("done", [1, 3, 4, 5, 8])
def test_a_restored_propagator_discovers_when_it_would_have(done: int, tmp_path: Path) -> None:
    truth = [box(4, 4, onto=box(44, 30, number=2) if t >= 4 else None) for t in range(9)]
    parts = {
        index: (GRID.sample_nearest(torch.from_numpy(mask)) > 0).numpy().astype(np.float32)
        for index, mask in enumerate(truth)
    }
    settings = config(stretch="none", discover_every=4)
    want, _ = carry(truth, None, settings, parts=parts)
    broken_off = Propagator(settings)
    start = list(itertools.islice(broken_off(packets(truth, parts=parts)), done))
    save_state(tmp_path, "propagate", broken_off.state())
    resumed = Propagator(settings)
    resumed.restore(load_state(tmp_path, "propagate"))
    same_labels(start + list(resumed(itertools.islice(packets(truth, parts=parts), done, None))), want)


def test_a_state_is_not_changed_by_the_frames_after_it() -> None:
    truth = [box(4 + 2 * t, 8) for t in range(6)]
    propagator = Propagator(config(), masks={0: truth[0], 4: truth[4]})
    stream = propagator(packets(truth))
    list(itertools.islice(stream, 2))
    state = propagator.state()
    before = copy.deepcopy(state)
    list(stream)
    assert str(state) == str(before)


def test_another_video_needs_a_reset() -> None:
    truth = [box(4 + 2 * t, 8) for t in range(4)]
    want, propagator = carry(truth, {0: truth[0]})
    with pytest.raises(ValueError, match=r"frame 0 after frame 3; reset\(\) before another video"):
        list(propagator(packets(truth)))
    propagator.reset(masks={0: truth[0]})
    same_labels(list(propagator(packets(truth))), want)
    propagator.reset()
    assert propagator.report() == {"objects": [], "references": []}


class LazyMasks(Mapping[int, Mask]):
    """Masks that are read when asked for."""

    def __init__(self, masks: dict[int, Mask]) -> None:
        self.masks, self.read = masks, list[int]()

    def __getitem__(self, index: int) -> Mask:
        mask = self.masks[index]
        self.read.append(index)
        return mask

    def __iter__(self) -> Iterator[int]:
        return iter(self.masks)

    def __len__(self) -> int:
        return len(self.masks)


def test_masks_are_read_when_their_frame_comes() -> None:
    truth = [box(4 + 2 * t, 8) for t in range(6)]
    masks = LazyMasks({0: truth[0], 3: truth[3], 9: truth[3]})
    stream = Propagator(config(), masks=masks)(packets(truth))
    next(stream)
    assert masks.read == [0]
    list(stream)
    assert masks.read == [0, 3]


@pytest.mark.parametrize("mask", [np.zeros((4, 4), np.uint8), np.zeros(GRID.image_hw, np.int64)])
def test_a_mask_that_does_not_fit_the_frame_is_named(mask: Mask) -> None:
    packet = next(packets([box(4, 4)]))
    with pytest.raises(MaskError, match=r"frame 0: the mask is .* must be uint8 \(48, 64\)"):
        Propagator(config()).step(packet, mask)


def test_a_given_mask_ends_discovery() -> None:
    truth = [box(4, 4, onto=box(44, 30, number=2))] * 6
    parts = {
        index: (GRID.sample_nearest(torch.from_numpy(mask)) > 0).numpy().astype(np.float32)
        for index, mask in enumerate(truth)
    }
    propagator = Propagator(config(stretch="none", discover_every=2))
    given = box(4, 4, number=9)
    out = [propagator.step(packet, given if packet.index == 0 else None) for packet in packets(truth, parts=parts)]
    assert [packet.labels.object_ids for packet in out if packet.labels] == [(9,)] * 6


def test_the_report_does_not_grow_with_the_video() -> None:
    truth = [box(8, 8)] * 30
    short, long = (carry(truth[:count], {0: truth[0]})[1] for count in (5, 30))
    assert len(str(long.report())) <= len(str(short.report())) + 4
    assert len(str(long.state())) <= len(str(short.state())) * 2
