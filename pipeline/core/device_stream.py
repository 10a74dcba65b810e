"""Streams, events, pinned memory and waits of a device: the one place in the project that touches them.

A card works through its streams while the host goes on. Code that uses it has to say three things: what must come
before what (events), which memory is still in use (pinned buffers, tensors of another stream), and when the host
needs a result (waits). All of it goes through :class:`DeviceStreams`, of which there are three:

- :class:`CudaStreams` for a card.
- :class:`HostStreams` for the CPU, on which everything is done when the call returns: its methods do nothing, and
  :attr:`DeviceStreams.is_asynchronous` is false.
- a simulated device in the tests, on which every work is late, memory that may be used again is overwritten, and
  accesses without an order are reported.

``tests/test_architecture.py`` forbids these calls of ``torch.cuda`` elsewhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

WaitListener = Callable[[float], object]
"""Called with the seconds that a thread has waited for the device."""


class Event(Protocol):
    """A place in a stream's work."""

    def wait(self) -> None:
        """Let the calling thread wait until the work before it is done."""

    def done(self) -> bool:
        """Whether the work before it is done."""

    def seconds_since(self, earlier: Event) -> float:
        """Seconds of the device between two events that are done; both made with ``timed``."""


class Stream(Protocol):
    """A queue of work of the device. As a context manager: the calling thread's work goes to it."""

    def __enter__(self) -> Stream: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def record(self, *, timed: bool = False) -> Event:
        """An event after all work that was given to the stream so far."""

    def wait_for(self, event: Event) -> None:
        """Let the work given to the stream from now on wait for an event; the host does not wait."""


class DeviceStreams(Protocol):
    """Everything asynchronous of one device.

    Attributes:
        device: The device.
        is_asynchronous: Whether work may be unfinished when a call returns.
    """

    device: torch.device
    is_asynchronous: bool

    def new_stream(self) -> Stream:
        """Another stream of the device."""

    def current(self) -> Stream:
        """The stream that the calling thread's work goes to."""

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory of the host that the device can copy from and to on its own; its content is arbitrary."""

    def upload(self, host: Tensor) -> Tensor:
        """A copy on the device of a pinned tensor, made by the current stream."""

    def download(self, values: Tensor, host: Tensor) -> None:
        """Copy to a pinned tensor of the same shape and dtype, by the current stream."""

    def touch(self, host: Tensor, *, write: bool) -> None:
        """Say that the host reads or writes pinned memory now; real devices need not be told."""

    def keep(self, tensors: Iterable[Tensor]) -> None:
        """Say that the current stream uses tensors of another one: their memory is not reused before it is done.

        The other stream's work on them must be ordered before by an event; this is about memory alone.
        """

    def synchronize(self) -> None:
        """Wait for all streams; for measurements and the end of a run."""

    def release_memory(self) -> None:
        """Give cached memory back to the device, for a second try after it ran out."""

    def peak_bytes(self) -> int | None:
        """Most memory of the device that was in use at once; None on the CPU."""

    def reset_peak(self) -> None:
        """Begin to count :meth:`peak_bytes` anew."""


class _DoneEvent:
    """On the CPU an event is over when it is made."""

    def __init__(self) -> None:
        self._seconds = time.perf_counter()

    def wait(self) -> None:
        """Nothing to wait for."""

    def done(self) -> bool:
        """Always."""
        return True

    def seconds_since(self, earlier: Event) -> float:
        """By the clock."""
        assert isinstance(earlier, _DoneEvent)
        return self._seconds - earlier._seconds


class _HostStream:
    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def record(self, *, timed: bool = False) -> Event:
        return _DoneEvent()

    def wait_for(self, event: Event) -> None: ...


class HostStreams:
    """The CPU: every call is done when it returns."""

    is_asynchronous = False

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def new_stream(self) -> Stream:
        """A stream without effect."""
        return _HostStream()

    def current(self) -> Stream:
        """A stream without effect."""
        return _HostStream()

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Plain memory."""
        return torch.empty(shape, dtype=dtype)

    def upload(self, host: Tensor) -> Tensor:
        """The tensor itself."""
        return host

    def download(self, values: Tensor, host: Tensor) -> None:
        """A plain copy."""
        host.copy_(values)

    def touch(self, host: Tensor, *, write: bool) -> None:
        """Nothing."""

    def keep(self, tensors: Iterable[Tensor]) -> None:
        """Nothing."""

    def synchronize(self) -> None:
        """Nothing."""

    def release_memory(self) -> None:
        """Nothing."""

    def peak_bytes(self) -> int | None:
        """The CPU has no memory of its own."""
        return None

    def reset_peak(self) -> None:
        """Nothing."""


class _CudaEvent:
    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def wait(self) -> None:
        if not self.done():
            self.event.synchronize()

    def done(self) -> bool:
        return bool(self.event.query())  # type: ignore[no-untyped-call]

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, _CudaEvent)
        return float(earlier.event.elapsed_time(self.event)) / 1e3


class _CudaStream:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._contexts: list[torch.cuda.StreamContext] = []

    def __enter__(self) -> Stream:
        context = torch.cuda.stream(self._stream)
        context.__enter__()  # type: ignore[no-untyped-call]
        self._contexts.append(context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._contexts.pop().__exit__(kind, error, trace)

    def record(self, *, timed: bool = False) -> Event:
        # A blocking event lets a waiting thread sleep instead of spinning on a core that other stages need.
        event = torch.cuda.Event(enable_timing=timed, blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return _CudaEvent(event)

    def wait_for(self, event: Event) -> None:
        assert isinstance(event, _CudaEvent)
        self._stream.wait_event(event.event)


class CudaStreams:
    """A card."""

    is_asynchronous = True

    def __init__(self, device: torch.device) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)

    def new_stream(self) -> Stream:
        """One of torch's pool of streams."""
        return _CudaStream(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]

    def current(self) -> Stream:
        """The thread's current stream."""
        return _CudaStream(torch.cuda.current_stream(self.device))

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """From torch's cache of page-locked memory, which reuses a block only after the copies it has seen."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def upload(self, host: Tensor) -> Tensor:
        """By the copy engine, beside the device's other work."""
        return host.to(self.device, non_blocking=True)

    def download(self, values: Tensor, host: Tensor) -> None:
        """By the copy engine; the host must wait for an event before it reads."""
        host.copy_(values, non_blocking=True)

    def touch(self, host: Tensor, *, write: bool) -> None:
        """Nothing."""

    def keep(self, tensors: Iterable[Tensor]) -> None:
        """As the caching allocator wants it."""
        current = torch.cuda.current_stream(self.device)
        for tensor in tensors:
            if tensor.is_cuda:
                tensor.record_stream(current)

    def synchronize(self) -> None:
        """Wait for the whole device."""
        torch.cuda.synchronize(self.device)

    def release_memory(self) -> None:
        """Empty the caching allocator."""
        torch.cuda.empty_cache()

    def peak_bytes(self) -> int | None:
        """As the caching allocator counts it."""
        return int(torch.cuda.max_memory_allocated(self.device))

    def reset_peak(self) -> None:
        """From now on."""
        torch.cuda.reset_peak_memory_stats(self.device)


def streams_of(device: torch.device) -> DeviceStreams:
    """The streams of a device."""
    return CudaStreams(device) if device.type == "cuda" else HostStreams()


_listener = threading.local()


def report_waits_to(listener: WaitListener | None) -> None:
    """Have the calling thread's waits for the device reported, so that they do not count as its work."""
    _listener.call = listener


def wait_for(event: Event) -> None:
    """Wait on the host, and report how long; see :func:`report_waits_to`."""
    call: WaitListener | None = getattr(_listener, "call", None)
    started = time.perf_counter()
    event.wait()
    if call is not None:
        call(time.perf_counter() - started)
