"""The simulated device finds planted races, and what goes through the module has none."""

from __future__ import annotations

from contextlib import nullcontext, suppress

import numpy as np
import pytest
import torch

from pipeline.core.device_stream import HostStreams, report_waits_to, streams_of
from pipeline.core.host_copy import HostCopy, fetch
from tests.simulated_device import DeviceTensor, SimulatedDevice


def filled(device: SimulatedDevice, value: float, count: int = 8) -> torch.Tensor:
    host = device.pinned((count,), torch.float32)
    device.touch(host, write=True)
    host.fill_(value)
    return device.upload(host)


def test_work_is_late_and_arrives_right() -> None:
    with SimulatedDevice(delay_share=1.0) as device:
        values = filled(device, 3.0)
        assert isinstance(values, DeviceTensor)
        grown = (values * 2 + 1).view(2, 4)[1:].sum(dim=0)
        grown += 1
        assert fetch(device, [grown])[0].tolist() == [8.0] * 4
        assert device.races == []
        assert device.host_reads == []


@pytest.mark.parametrize("ordered", [True, False])
def test_reading_on_another_stream_without_an_event_is_reported(ordered: bool) -> None:
    device = SimulatedDevice()
    with nullcontext() if ordered else suppress(Exception), device:  # the values may be missing too
        first, second = device.new_stream(), device.new_stream()
        with first:
            values = filled(device, 1.0) + 1
            made = first.record()
        if ordered:
            second.wait_for(made)
        with second:
            device.keep([values])
            assert fetch(device, [values.sum().reshape(1)])[0].tolist() == [16.0]
    assert bool(device.races) is not ordered


@pytest.mark.parametrize("kept", [True, False])
def test_memory_that_is_freed_while_another_stream_reads_it_is_reported(kept: bool) -> None:
    with SimulatedDevice() as device:
        first, second = device.new_stream(), device.new_stream()
        with first:
            values = filled(device, 1.0) + 1
            second.wait_for(first.record())
        with second:
            if kept:
                device.keep([values])
            total = values * 1
        del values
        with second:
            found = fetch(device, [total])[0]
        assert bool(device.races) is not kept
        if kept:
            assert found.tolist() == [2.0] * 8


@pytest.mark.parametrize("guarded", [True, False])
def test_a_pinned_buffer_that_is_filled_while_it_is_copied_is_reported(guarded: bool) -> None:
    with SimulatedDevice(delay_share=1.0, delay_seconds=0.02) as device:
        host = device.pinned((8,), torch.float32)
        device.touch(host, write=True)
        host.fill_(1.0)
        values = device.upload(host)
        if guarded:
            device.current().record().wait()
        device.touch(host, write=True)
        host.fill_(2.0)
        found = fetch(device, [values])[0]
        assert bool(device.races) is not guarded
        if guarded:
            assert found.tolist() == [1.0] * 8


def test_a_result_that_is_read_before_its_copy_is_reported() -> None:
    with SimulatedDevice() as device:
        host = device.pinned((8,), torch.float32)
        device.download(filled(device, 1.0), host)
        device.touch(host, write=False)
        assert len(device.races) == 1


def test_waiting_for_a_value_is_counted() -> None:
    with SimulatedDevice() as device:
        assert filled(device, 2.0).sum().item() == 16.0
        assert device.host_reads == ["aten::_local_scalar_dense"]


def test_a_copy_by_another_stream_waits_for_the_work_before_it() -> None:
    waits: list[float] = []
    with SimulatedDevice(delay_share=0.5) as device:
        report_waits_to(waits.append)
        copies = device.new_stream()
        values = filled(device, 2.0, 6)
        copy = HostCopy(device, [values.view(2, 3), values[:2].sum().reshape(1)], by=copies)
        del values
        whole, total = copy.arrays()
        report_waits_to(None)
        np.testing.assert_array_equal(whole, np.full((2, 3), 2.0))
        assert total.tolist() == [4.0]
        assert device.races == []
    assert len(waits) == 1


def test_the_processor_needs_no_streams() -> None:
    streams = streams_of(torch.device("cpu"))
    assert isinstance(streams, HostStreams)
    assert not streams.is_asynchronous
    assert streams.peak_bytes() is None
    with streams.new_stream() as stream:
        stream.wait_for(stream.record())
        assert fetch(streams, [torch.arange(3.0), torch.ones(1)])[0].tolist() == [0.0, 1.0, 2.0]
    first, last = streams.current().record(timed=True), streams.current().record(timed=True)
    assert last.seconds_since(first) >= 0
    assert last.done()
