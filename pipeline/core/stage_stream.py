"""A stage of the flow on a stream of its own, so that the device works for all stages side by side.

A packet carries an event after the device's work on it (:attr:`Packet.ready`). The stage that takes it lets its
own stream wait for that, the host never. Tensors that come from another stage are kept until this one's stream is
done with them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from pipeline.core.device_stream import DeviceStreams, Event, Stream, WaitListener, report_waits_to
from pipeline.core.records import Frame, Packet

Item = TypeVar("Item", Frame, Packet)


class StageClock:
    """Seconds for which the device worked for a stage.

    From when the stage's stream reaches an item until it is done with it, measured by the device's events. What
    the device waits for the host inside an item counts too. Memory is bounded: events that are over are added up
    and forgotten.
    """

    def __init__(self) -> None:
        self._begun: Event | None = None
        self._laps: deque[tuple[Event, Event]] = deque()
        self._seconds = 0.0

    def start(self, stream: Stream) -> None:
        """The stream's further work is for an item that has just come; one that came before has had none."""
        self._begun = stream.record(timed=True)

    def stop(self, stream: Stream) -> Event:
        """The stream has all work for an item; returns the event after it."""
        over = stream.record(timed=True)
        if self._begun is not None:
            self._laps.append((self._begun, over))
            self._begun = None
        while self._laps and self._laps[0][1].done():
            self._add()
        return over

    def seconds(self) -> float:
        """All seconds so far; waits for the device."""
        while self._laps:
            self._laps[0][1].wait()
            self._add()
        return self._seconds

    def _add(self) -> None:
        begun, over = self._laps.popleft()
        self._seconds += over.seconds_since(begun)


def on_own_stream(
    stage: Callable[[Iterator[Item]], Iterator[Packet]],
    items: Iterator[Item],
    streams: DeviceStreams,
    clock: StageClock,
    waited: WaitListener,
) -> Iterator[Packet]:
    """The packets of a stage whose work on the device goes to a new stream; for the thread that iterates them.

    Args:
        stage: Makes the generator.
        items: Its input.
        streams: The device; on the CPU this is just ``stage(items)``.
        clock: Measures.
        waited: Gets the seconds the stage waits for results of the device.
    """
    if not streams.is_asynchronous:
        return stage(items)
    return _on_stream(stage, items, streams, clock, waited)


def _on_stream(
    stage: Callable[[Iterator[Item]], Iterator[Packet]],
    items: Iterator[Item],
    streams: DeviceStreams,
    clock: StageClock,
    waited: WaitListener,
) -> Iterator[Packet]:
    report_waits_to(waited)
    with streams.new_stream() as stream:
        received = _received(items, streams, stream, clock)
        with closing(stage(received)) as packets:  # type: ignore[type-var]
            for packet in packets:
                yield replace(packet, ready=clock.stop(stream))


def _received(items: Iterable[Item], streams: DeviceStreams, stream: Stream, clock: StageClock) -> Iterator[Item]:
    for item in items:
        if isinstance(item, Packet):
            take(item, streams, stream)
        clock.start(stream)
        yield item


def for_caller(packets: Iterator[Packet], streams: DeviceStreams) -> Iterator[Packet]:
    """Packets whose tensors the caller's own stream may use."""
    return _taken(packets, streams) if streams.is_asynchronous else packets


def _taken(packets: Iterator[Packet], streams: DeviceStreams) -> Iterator[Packet]:
    for packet in packets:
        take(packet, streams, streams.current())
        yield packet


def take(packet: Packet, streams: DeviceStreams, stream: Stream) -> None:
    """Order a stream's further work after a packet, and keep the packet's tensors until that work is done."""
    if packet.ready is not None:
        stream.wait_for(packet.ready)
        streams.keep(_tensors(packet))


def _tensors(packet: Packet) -> list[Tensor]:
    found = [] if packet.features is None else packet.features.tensors()
    return found if packet.labels is None else [*found, packet.labels.probs]
