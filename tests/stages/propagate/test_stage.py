from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from pipeline.core.config import load_config
from pipeline.core.errors import ConfigError
from pipeline.core.records import Features, Frame, Packet, PartMap, PatchGrid
from stages.propagate import Propagator
from stages.propagate.config import PropagateConfig

GRID = PatchGrid((48, 64), (12, 16), (4.0, 4.0), (2.0, 2.0))
Mask = npt.NDArray[np.uint8]


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
    looks = F.normalize(torch.randn(256, 32, generator=generator), dim=1)
    places = 0.3 * torch.randn(32, *GRID.grid_hw, generator=generator)
    for index, mask in enumerate(truth):
        objects = GRID.sample_nearest(torch.from_numpy(mask).long())
        data = looks[objects].permute(2, 0, 1) + places * (objects == 0)
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
    mask[0, :5] = 255  # void is nobody's
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
    assert [len(entry["confidence"]) for entry in report] == [14, 9]


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
    confidence = propagator.report()["objects"][0]["confidence"]
    assert confidence[0] == 1.0
    assert max(confidence[2:14]) == 0.0
    assert confidence[-1] > 0.5


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
    assert "forgot" in propagator.warnings[0]


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
    assert min(propagator.report()["objects"][0]["confidence"]) > 0.9
    assert found[-1].labels is not None
    assert len(found[-1].labels.confidence) == 1


def test_facets_are_looked_up_by_name() -> None:
    truth = [box(8, 8)] * 2
    with pytest.raises(ConfigError, match=r"'key@11' is not extracted; there are: data"):
        carry(truth, {0: truth[0]}, config(facets=["data", "key@11"]))


def test_packets_without_features_are_refused() -> None:
    with pytest.raises(ConfigError, match="switch extract on"):
        list(Propagator(config())([Packet(Frame(np.zeros((4, 4, 3), np.uint8), 0, 0.0))]))
