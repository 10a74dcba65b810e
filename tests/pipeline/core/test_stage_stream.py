"""Stages on streams of their own: events between them, memory kept, and the device's seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.core import stage_stream
from pipeline.core.device_stream import HostStreams
from pipeline.core.grid import PatchGrid
from pipeline.core.host_copy import fetch
from pipeline.core.records import Features, Frame, Packet
from pipeline.core.runner import Pipeline
from pipeline.core.stage_stream import StageClock, on_own_stream
from tests.simulated_device import SimulatedDevice

GRID = PatchGrid((4, 6), (2, 3), (2.0, 2.0), (1.0, 1.0))
COUNT = 8


def make(device: SimulatedDevice, frames: Iterator[Frame]) -> Iterator[Packet]:
    for frame in frames:
        host = device.pinned((4, 2, 3), torch.float32)
        device.touch(host, write=True)
        host.fill_(frame.index)
        yield Packet(frame, Features(device.upload(host) + 1, GRID))


def double(packets: Iterator[Packet]) -> Iterator[Packet]:
    for packet in packets:
        assert packet.features is not None
        yield replace(packet, features=replace(packet.features, data=packet.features.data * 2))


def read(device: SimulatedDevice, packets: Iterator[Packet]) -> Iterator[Packet]:
    for packet in packets:
        assert packet.features is not None
        values = fetch(device, [packet.features.data])[0]
        assert values.tolist() == np.full((4, 2, 3), 2 * (packet.index + 1)).tolist()
        yield replace(packet, features=None)


def run(device: SimulatedDevice) -> tuple[Pipeline, dict[str, StageClock]]:
    frames = iter([Frame(np.zeros((4, 6, 3), np.uint8), index, index / 25) for index in range(COUNT)])
    clocks = {name: StageClock() for name in ("make", "double", "read")}
    with Pipeline(2) as pipe:
        packets = pipe.buffer(
            on_own_stream(lambda items: make(device, items), frames, device, clocks["make"], pipe.waited),
            name="make",
        )
        for name, stage in (("double", double), ("read", lambda items: read(device, items))):
            packets = pipe.buffer(on_own_stream(stage, packets, device, clocks[name], pipe.waited), name=name)
        assert [packet.index for packet in packets] == list(range(COUNT))
    return pipe, clocks


def test_packets_pass_from_stream_to_stream_without_a_race() -> None:
    with SimulatedDevice(delay_share=0.2) as device:
        pipe, clocks = run(device)
        assert device.races == []
        assert all(clock.seconds() > 0 for clock in clocks.values())
    waits = {stage.name: stage.input_wait_seconds for stage in pipe.statistics}
    assert waits["read"] > 0


def test_without_the_events_between_stages_races_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_stream, "take", lambda packet, streams, stream: None)
    device = SimulatedDevice()
    with suppress(Exception), device:  # values are wrong or missing too, where chance wants it
        run(device)
    assert device.races


def test_on_the_processor_a_stage_stays_as_it_is() -> None:
    packets = [Packet(Frame(np.zeros((4, 6, 3), np.uint8), 0, 0.0), Features(torch.ones(4, 2, 3), GRID))]
    (found,) = on_own_stream(double, iter(packets), HostStreams(), StageClock(), lambda seconds: None)
    assert found.ready is None
    assert found.features is not None
    assert float(found.features.data.sum()) == 48
