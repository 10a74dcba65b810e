"""Labels made on a card are those made on the host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pipeline.core.device_filter import DeviceGuidedFilter, apply_fit
from pipeline.core.guided_filter import fast_guided_filter, fast_guides
from pipeline.core.host_copy import HostCopy, HostFeatures
from pipeline.core.records import Packet
from pipeline.core.state import load_state, save_state
from stages.cosegment import CosegmentConfig, Cosegmenter, device_maps, labeler
from stages.cosegment.part_maps import _speckles
from tests.counted_card import CountedStreams, counted_card, on_card
from tests.stages.cosegment.scenes import FAST, moving_square
from tests.stages.cosegment.test_lifted import lifted

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("size", [(20, 35), (5, 6)])
def test_blurring_and_resizing_are_opencvs(size: tuple[int, int]) -> None:
    values = RANDOM.random(size).astype(np.float32)
    maps = torch.from_numpy(values)[None]
    np.testing.assert_allclose(
        device_maps.gaussian_blur(maps, 2.0)[0], cv2.GaussianBlur(values, (0, 0), 2.0), atol=1e-5
    )
    np.testing.assert_allclose(
        device_maps.resize_linear(maps, (51, 77))[0], cv2.resize(values, (77, 51)), atol=1e-5
    )
    numbers = RANDOM.integers(0, 255, size).astype(np.uint8)
    for wanted in ((51, 77), (720, 1280), (13, 4)):
        nearest = cv2.resize(numbers, wanted[::-1], interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(device_maps.resize_nearest(torch.from_numpy(numbers), wanted), nearest)


def test_remapping_is_opencvs() -> None:
    values = RANDOM.random((2, 20, 35)).astype(np.float32)
    where = np.stack(np.meshgrid(np.arange(35), np.arange(20)), axis=-1) + RANDOM.normal(0, 4, (20, 35, 2))
    where = where.astype(np.float32)
    found = device_maps.remap_linear(torch.from_numpy(values), torch.from_numpy(where)).numpy()
    wanted = np.stack([cv2.remap(one, where, None, cv2.INTER_LINEAR) for one in values])
    np.testing.assert_allclose(found, wanted, atol=1e-5 if cv2.__version__ >= "5" else 0.04)


def _maze(height: int, width: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """One long winding line, and a piece of two cells."""
    mask = np.zeros((height, width), bool)
    mask[: height - 3 : 4] = True
    for row in range(0, height - 7, 4):
        mask[row : row + 4, -1 if row % 8 == 0 else 0] = True
    mask[-1, 3:5] = True
    return mask


def test_small_pieces_are_those_scipy_finds() -> None:
    masks = [RANDOM.random((RANDOM.integers(3, 60), 40)) < share for share in (0.3, 0.38, 0.41, 0.45, 0.6) * 8]
    masks += [_maze(83, 60), _maze(83, 60)[:, ::-1], _maze(83, 60)[::-1], _maze(83, 60).T]
    masks += [np.zeros((4, 5), bool), np.ones((4, 5), bool)]
    for mask in masks:
        found = device_maps.small_pieces(torch.from_numpy(np.ascontiguousarray(mask)), 0.3)
        np.testing.assert_array_equal(found, _speckles(mask, 0.3))


def run(packets: list[Packet], monkeypatch: pytest.MonkeyPatch | None = None, **options: Any) -> list[Packet]:
    """The stage over packets; with ``monkeypatch`` labels are made by the tensors' version, on the CPU."""
    if monkeypatch is not None:
        monkeypatch.setattr(labeler, "is_on_card", lambda features: True)
    return list(Cosegmenter(CosegmentConfig.model_validate({**FAST, **options}))(packets))


def same(found: list[Packet], wanted: list[Packet]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.parts is not None
        assert other.parts is not None
        assert (one.parts.index_mask != other.parts.index_mask).mean() < 0.002
        np.testing.assert_allclose(one.parts.foreground, other.parts.foreground, atol=2e-3)
        assert (one.parts.part_ids is None) == (other.parts.part_ids is None)
        if one.parts.part_ids is not None:
            clear = np.abs(other.parts.foreground - 0.5) > 1e-4  # else rounding decides
            assert (one.parts.part_ids != other.parts.part_ids)[clear].mean() < 0.01


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"refine": "none", "part_ids": False},
        {"foreground": "vote"},
        {"mode": "two_pass"},
        {"hold_back": False},
    ],
)
def test_labels_on_tensors_are_those_on_arrays(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    packets = [*moving_square(9), *moving_square(6, scene=1, first=9), *moving_square(3, first=15, salient=False)]
    wanted = run(packets, **options)
    same(run(packets, monkeypatch, **options), wanted)


def test_labels_of_lifted_cells_are_those_on_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    packets = list(lifted(moving_square(8), shift=1))
    wanted = run(packets)
    same(run(packets, monkeypatch), wanted)


def test_a_run_goes_on_from_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labeler, "is_on_card", lambda features: True)
    packets = list(moving_square(12))
    config = CosegmentConfig.model_validate(FAST)
    wanted = list(Cosegmenter(config)(packets))
    first, states = Cosegmenter(config), []

    def feed() -> Any:
        yield from packets[:8]
        states.append(first.state())

    before = []
    for packet in first(feed()):
        if states:
            break
        before.append(packet)
    save_state(tmp_path, "cosegment", states[0])
    second = Cosegmenter(config)
    second.restore(load_state(tmp_path, "cosegment"))
    found = [*before, *second(packets[8:])]
    for one, other in zip(found, wanted, strict=True):
        assert one.parts is not None
        assert other.parts is not None
        np.testing.assert_array_equal(one.parts.index_mask, other.parts.index_mask)
        np.testing.assert_array_equal(one.parts.foreground, other.parts.foreground)


def test_the_same_labels_on_a_card_with_two_copies_there_and_one_back(monkeypatch: pytest.MonkeyPatch) -> None:
    packets = list(moving_square(9))
    wanted = run(packets)
    with counted_card(monkeypatch) as counts:
        streams = CountedStreams(counts)
        sent = []
        for packet in packets:
            features = packet.features
            assert features is not None
            assert features.saliency is not None
            data, saliency = on_card(features.data), on_card(features.saliency)
            copy = HostCopy(streams, [data, saliency])
            on = replace(features, data=data, saliency=saliency, host=HostFeatures(copy, 0, 1))
            sent.append(replace(packet, features=on))
        stage = Cosegmenter(CosegmentConfig.model_validate(FAST))(iter(sent))
        found = [next(stage) for _ in range(6)]
        counts.clear()
        found += list(stage)
        assert (counts.waits, counts.downloads, counts.uploads) == ({}, 3, 6)
    same(found, wanted)


def test_the_fast_guided_filter_on_tensors_is_that_on_arrays() -> None:
    image = np.kron(RANDOM.integers(0, 256, (9, 16, 3)), np.ones((50, 50, 1))).astype(np.uint8)
    soft = RANDOM.random((9, 16)).astype(np.float32)
    wanted = fast_guided_filter(image, soft[None], radius_px=12)[0]
    guides = fast_guides(image)
    small, large = (torch.from_numpy(g).permute(2, 0, 1) / 255 for g in (guides.small, guides.large))
    smooth = DeviceGuidedFilter(small, radius_px=round(12 * guides.scale), epsilon=1e-4)
    values = device_maps.resize_linear(torch.from_numpy(soft)[None], (small.shape[1], small.shape[2]))[0]
    found = apply_fit(device_maps.resize_linear(smooth.fit(values), (large.shape[1], large.shape[2])), large)
    np.testing.assert_allclose(found, wanted, atol=2e-3)
