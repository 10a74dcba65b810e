"""Extraction on a simulated card: the same features, no race, no wait for a value, and a batch always in work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.core.config import load_config
from pipeline.core.device_stream import HostStreams
from pipeline.core.host_copy import fetch, send
from pipeline.core.records import Frame, Packet
from pipeline.core.state import load_state, save_state
from stages.extract import ExtractConfig, Extractor
from stages.extract.saliency import SaliencyCue
from stages.extract.upload import PinnedRing, Uploader
from tests.simulated_device import SimulatedDevice
from tests.stages.extract.test_stage import BASE, features_of, frames, tiny

SETTINGS: dict[str, Any] = {"batch_size": 2, "saliency": "none"}


def make(device: SimulatedDevice | None, **settings: Any) -> Extractor:
    config = load_config(ExtractConfig, BASE | SETTINGS | settings)
    extractor = Extractor(config, backbone=tiny(), streams=device)
    extractor.sends_features = True
    return extractor


def read(device: SimulatedDevice, packets: Iterator[Packet]) -> list[np.ndarray[Any, Any]]:
    """The features by way of another stage's stream."""
    consumer, found = device.new_stream(), []
    for packet in packets:
        consumer.wait_for(device.current().record())
        with consumer:
            device.keep(features_of(packet).tensors())
            found.append(fetch(device, [features_of(packet).data * 2])[0] / 2)
    return found


@pytest.mark.parametrize(
    ("cue", "more"),
    [
        ("ncut", {"facets": ["key@1", "token@0"], "short_side": 80}),
        ("cls_attention", {"normalize": True, "log_bins": 1}),
    ],
)
def test_a_late_device_gives_the_same_features_without_a_race(cue: SaliencyCue, more: dict[str, Any]) -> None:
    source = frames(3, (80, 96) if cue == "ncut" else (40, 60))
    expected = list(make(None, saliency=cue, **more)(source))
    with SimulatedDevice(seed=1) as device:
        extractor = make(device, saliency=cue, **more)
        packets = list(extractor(source))
        found = read(device, iter(packets))
        for mine, own, theirs in zip(found, packets, expected, strict=True):
            want = features_of(theirs)
            np.testing.assert_allclose(mine, want.data.numpy(), atol=1e-5)
            np.testing.assert_array_equal(features_of(own).data_on_host(), mine)
            saliency = features_of(own).saliency_on_host()
            assert (saliency is None) == (want.saliency is None)
            if saliency is not None and want.saliency is not None:
                # All cells of this small grid lie at the border, so that a component may have either sign.
                turned = saliency if abs(saliency - want.saliency.numpy()).max() < 0.5 else 1 - saliency
                np.testing.assert_allclose(turned, want.saliency.numpy(), atol=2e-3)
        assert device.races == []
        assert device.host_reads == []


@pytest.mark.parametrize("guarded", [True, False])
def test_a_pinned_buffer_that_is_reused_too_early_is_found(guarded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not guarded:
        monkeypatch.setattr(PinnedRing, "copied_after", lambda ring, event: None)
    with SimulatedDevice() as device:
        upload = Uploader(device, "area")
        upload._ring = PinnedRing(device, 1)
        for frame in frames(3):
            upload([frame.image], (32, 48))
        assert any("the host" in race for race in device.races) is not guarded


def test_frames_that_the_card_has_decoded_are_not_uploaded_again() -> None:
    images = [frame.image for frame in frames(2)]
    wanted = Uploader(HostStreams(), "area")(images, (32, 48))
    with SimulatedDevice() as device:
        decoded = [send(device, image) for image in images]
        upload = Uploader(device, "area")
        (found,) = fetch(device, [upload(images, (32, 48), decoded)])
        assert upload._ring._buffers == [None, None]
        (mixed,) = fetch(device, [upload(images, (32, 48), [decoded[0], None])])
        assert upload._ring._buffers != [None, None]
        assert device.races == []
    np.testing.assert_allclose(found, wanted.numpy(), atol=1)
    np.testing.assert_array_equal(mixed, found)


def test_the_next_batch_is_in_work_when_a_packet_leaves() -> None:
    taken: list[int] = []

    def feed() -> Iterator[Frame]:
        for frame in frames(7):
            taken.append(frame.index)
            yield frame

    with SimulatedDevice() as device:
        ahead = [max(taken) - packet.index for packet in make(device)(feed())]
    assert ahead == [3, 2, 3, 2, 2, 1, 0]


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_batch_in_work_is_part_of_the_state(count: int, tmp_path: Path) -> None:
    source = frames(6)
    states = []
    with SimulatedDevice() as device:
        expected = read(device, make(device)(source))
        first = make(device)

        def feed() -> Iterator[Frame]:
            yield from source[:count]
            states.append(first.state())

        before = []
        for packet in first(feed()):
            if states:
                break
            before.append(packet)
        save_state(tmp_path, "extract", states[0])
        second = make(device)
        second.restore(load_state(tmp_path, "extract"))
        found = read(device, iter([*before, *second(source[count:])]))
    assert len(found) == len(expected)
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_values_that_are_not_finite_are_named_one_batch_later() -> None:
    with SimulatedDevice() as device:
        extractor = make(device)
        with torch.no_grad():
            extractor.backbone.vit.blocks[0].mlp.fc2.bias[0] = torch.nan
        with pytest.raises(FloatingPointError, match=r"frame 0: .* of key@1 are not finite"):
            list(extractor(frames(5)))
