"""A card that is simulated on the CPU, to find races: everything that may happen late does.

Tensors of the device are :class:`DeviceTensor`: an operation on one is put into the current stream's queue, and a
thread per stream does it after random delays. Memory that an allocator may use again is overwritten with NaN:
freed tensors in the order of the stream that made them (unless ``keep`` says that another stream uses them), and
pinned buffers when the host takes them. Every access goes through ``torch.cuda._sanitizer.EventHandler``, so that
a missing event is reported in every run, also where chance hides it. The host's own accesses are a stream to it.
"""

from __future__ import annotations

import itertools
import queue
import random
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.cuda import _sanitizer
from torch.cuda._sanitizer import EventHandler
from torch.utils._pytree import tree_flatten, tree_map

from pipeline.core.device_stream import Event, Stream

_SHARED_WITHOUT_SAYING = ("aten::_unsafe_view", "aten::_reshape_alias")
_READS_VALUES = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")
_POISON = 0xAB


class _NoTraces:
    """In place of the sanitizer's ``traceback``: a stack per access costs more than all the rest."""

    StackSummary = traceback.StackSummary

    @staticmethod
    def walk_stack(frame: object) -> list[object]:
        return []


class _Block:
    """Memory of the device; says so when nobody refers to it any more."""

    def __init__(self, device: SimulatedDevice, stream: _SimulatedStream) -> None:
        self.device, self.stream = device, stream
        self.number = next(device.numbers)
        self.users = {stream}
        self.kept: set[_SimulatedStream] = set()
        self.cell: list[Tensor] = []

    def __del__(self) -> None:
        self.device.freed(self)


class DeviceTensor(Tensor):
    """A tensor whose values come later: shape and dtype are known, the values only to the streams."""

    block: _Block
    meta: Tensor
    cell: list[Tensor]

    @staticmethod
    def __new__(cls, meta: Tensor, block: _Block, cell: list[Tensor]) -> DeviceTensor:
        made: DeviceTensor = torch.Tensor._make_wrapper_subclass(
            cls, meta.shape, strides=meta.stride(), storage_offset=meta.storage_offset(), dtype=meta.dtype
        )
        made.meta, made.block, made.cell = meta, block, cell
        return made

    is_cpu = False

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves = tree_flatten((args, kwargs))[0]
        device = next(leaf.block.device for leaf in leaves if isinstance(leaf, DeviceTensor))
        return device.launch(func, args, kwargs)


class _SimulatedEvent:
    def __init__(self, device: SimulatedDevice, number: int) -> None:
        self._device, self.number = device, number
        self.over = threading.Event()
        self.seconds = 0.0

    def wait(self) -> None:
        assert self.over.wait(60), "the simulated device hangs"
        self._device.raise_failure()
        self._device.tell("_handle_event_synchronization", self.number)

    def done(self) -> bool:
        return self.over.is_set()

    def seconds_since(self, earlier: Event) -> float:
        assert isinstance(earlier, _SimulatedEvent)
        return self.seconds - earlier.seconds


class _SimulatedStream:
    def __init__(self, device: SimulatedDevice) -> None:
        self._device = device
        self.number = next(device.numbers)
        self._tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        device.tell("_handle_stream_creation", self.number)
        threading.Thread(target=self._work, name=f"stream {self.number}", daemon=True).start()

    def put(self, task: Callable[[], object] | None) -> None:
        self._tasks.put(task)

    def __enter__(self) -> Stream:
        self._device.stack().append(self)
        return self

    def __exit__(self, *problem: object) -> None:
        self._device.stack().pop()

    def record(self, *, timed: bool = False) -> Event:
        event = _SimulatedEvent(self._device, next(self._device.numbers))
        self._device.tell("_handle_event_creation", event.number)
        self._device.tell("_handle_event_record", event.number, self.number)

        def reached() -> None:
            event.seconds = time.perf_counter()
            event.over.set()

        self.put(reached)
        return event

    def wait_for(self, event: Event) -> None:
        assert isinstance(event, _SimulatedEvent)
        self._device.tell("_handle_event_wait", event.number, self.number)
        self.put(partial(event.over.wait, 60))

    def _work(self) -> None:
        with torch.inference_mode():
            while (task := self._tasks.get()) is not None:
                self._device.delay()
                try:
                    task()
                except Exception as error:  # noqa: BLE001  (shown to whoever waits for the device)
                    self._device.failures.append(error)


class SimulatedDevice:
    """A :class:`pipeline.core.device_stream.DeviceStreams` for tests; use as a context manager.

    Args:
        seed: Of the delays.
        delay_seconds: Longest delay.
        delay_share: Share of the work that is delayed.

    Attributes:
        races: What the sanitizer has reported, one text each.
        host_reads: Operations that made the host wait for a value, such as ``.item()``; none of them asynchronous.
    """

    is_asynchronous = True

    def __init__(self, seed: int = 0, delay_seconds: float = 0.002, delay_share: float = 0.03) -> None:
        self.device = torch.device("cpu")
        self.numbers = itertools.count(1)
        self.races: list[str] = []
        self.host_reads: list[str] = []
        self.failures: list[Exception] = []
        self._delay = (delay_seconds, delay_share)
        self._random = random.Random(seed)
        self._handler = EventHandler()
        self._lock = threading.RLock()
        self._local = threading.local()
        self._closed = False
        self._pinned: dict[int, int] = {}
        self._streams: list[_SimulatedStream] = []
        self._default = self.new_stream()

    def __enter__(self) -> SimulatedDevice:
        setattr(_sanitizer, "traceback", _NoTraces)  # noqa: B010
        return self

    def __exit__(self, *problem: object) -> None:
        self.synchronize()
        setattr(_sanitizer, "traceback", traceback)  # noqa: B010
        self._closed = True
        for stream in self._streams:
            stream.put(None)

    def new_stream(self) -> _SimulatedStream:
        stream = _SimulatedStream(self)
        self._streams.append(stream)
        return stream

    def current(self) -> _SimulatedStream:
        return self.stack()[-1] if self.stack() else self._default

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        made = torch.empty(shape, dtype=dtype)
        _overwrite(made)
        self._pinned[made.untyped_storage().data_ptr()] = next(self.numbers)
        return made

    def upload(self, host: Tensor) -> Tensor:
        stream, cell = self.current(), list[Tensor]()
        block = _Block(self, stream)
        block.cell = cell
        self._access(stream, "upload", reads=[self._number_of(host)], writes=[block.number])
        stream.put(lambda: cell.append(host.clone()))
        return DeviceTensor(host.to("meta"), block, cell)

    def download(self, values: Tensor, host: Tensor) -> None:
        assert isinstance(values, DeviceTensor)
        stream, cell = self.current(), values.cell
        values.block.users.add(stream)
        self._access(stream, "download", reads=[values.block.number], writes=[self._number_of(host)])
        stream.put(lambda: host.copy_(cell[0]))

    def touch(self, host: Tensor, *, write: bool) -> None:
        number = self._number_of(host)
        stream = self._host_stream()
        with self._lock:
            self._access_now(stream, "the host", [] if write else [number], [number] if write else [])
        if write:
            _overwrite(host)

    def keep(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if isinstance(tensor, DeviceTensor):
                tensor.block.kept.add(self.current())

    def synchronize(self) -> None:
        for stream in list(self._streams):
            stream.record().wait()

    def release_memory(self) -> None: ...

    def peak_bytes(self) -> int | None:
        return None

    def reset_peak(self) -> None: ...

    def stack(self) -> list[_SimulatedStream]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        stack: list[_SimulatedStream] = self._local.stack
        return stack

    def delay(self) -> None:
        longest, share = self._delay
        with self._lock:
            draw, seconds = self._random.random(), self._random.uniform(0, longest)
        if draw < share:
            time.sleep(seconds)

    def tell(self, method: str, *arguments: int) -> None:
        """Pass something on to the sanitizer."""
        with self._lock:
            getattr(self._handler, method)(*arguments)

    def raise_failure(self) -> None:
        if self.failures:
            raise self.failures[0]

    def launch(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Put an operation into the current stream's queue, and return tensors that stand for its results."""
        whole = func.decompose(*args, **kwargs)
        if whole is not NotImplemented:
            return whole
        stream = self.current()
        found = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, DeviceTensor)]
        written = _written(func, args, kwargs)
        assert all(isinstance(tensor, DeviceTensor) for tensor in written), f"{func} writes to memory of the host"
        reads = {tensor.block.number for tensor in found} - {tensor.block.number for tensor in written}
        for tensor in found:
            tensor.block.users.add(stream)
        if func.name().split(".")[0] in _READS_VALUES or _picks_by_bool(func, args):
            return self._read_on_host(func, args, kwargs, reads)
        return self._launch_late(func, args, kwargs, found, reads, {tensor.block.number for tensor in written})

    def _launch_late(
        self, func: Any, args: Any, kwargs: Any, found: list[DeviceTensor], reads: set[int], writes: set[int]
    ) -> Any:
        stream = self.current()
        metas = func(*_with(args, _meta), **_with(_meta_device(kwargs), _meta))
        owner = {id(tensor.meta): tensor for tensor in found}
        cells: list[list[Tensor] | None] = []

        def stand_in(meta: Any) -> Any:
            if not isinstance(meta, Tensor):
                return meta
            if id(meta) in owner:
                cells.append(None)
                return owner[id(meta)]
            cell = list[Tensor]()
            cells.append(cell)
            if _is_view(func):
                return DeviceTensor(meta, found[0].block, cell)
            block = _Block(self, stream)
            block.cell = cell
            writes.add(block.number)
            return DeviceTensor(meta, block, cell)

        results = tree_map(stand_in, metas)
        self._access(stream, func.name(), reads=reads, writes=writes)
        real_args, real_kwargs = _with(args, _cell), _with(kwargs, _cell)

        def work() -> None:
            values = func(*_with(real_args, _value), **_with(real_kwargs, _value))
            tensors = [value for value in tree_flatten(values)[0] if isinstance(value, Tensor)]
            for cell, value in zip(cells, tensors, strict=True):
                if cell is not None:
                    cell.append(value)

        stream.put(work)
        return results

    def freed(self, block: _Block) -> None:
        """The allocator may use a block again, after the work of its own stream and of those that keep it."""
        if self._closed:
            return
        stream, events = block.stream, [other.record() for other in block.kept - {block.stream}]
        if block.users - {block.stream}:
            # What may come next is a write in the order of the block's own stream and of those that keep it.
            with self._lock:
                syncs = self._handler.syncs
                syncs.current_sync_states.pop(-1, None)
                syncs.create_stream(-1)
                for place in (stream.record(), *events):
                    assert isinstance(place, _SimulatedEvent)
                    syncs.stream_wait_for_event(-1, place.number)
                self._access_now(-1, "memory that is used again", [], [block.number])
        for event in events:
            assert isinstance(event, _SimulatedEvent)
            stream.put(partial(event.over.wait, 60))
        cell = block.cell
        stream.put(lambda: _overwrite(cell[0]) if cell else None)

    def _read_on_host(self, func: Any, args: Any, kwargs: Any, reads: set[int]) -> Any:
        self.host_reads.append(func.name())
        stream = self.current()
        self._access(stream, func.name(), reads=reads, writes=[])
        stream.record().wait()
        result = func(*_with(_with(args, _cell), _value), **_with(_with(kwargs, _cell), _value))
        if not isinstance(result, Tensor):
            return result
        block = _Block(self, stream)
        block.cell = [result]
        return DeviceTensor(result.to("meta"), block, block.cell)

    def _access(self, stream: _SimulatedStream, what: str, *, reads: Iterable[int], writes: Iterable[int]) -> None:
        with self._lock:
            # What the host did before it gave the work comes before it.
            self._handler.syncs.record_state(-2, self._host_stream())
            self._handler.syncs.stream_wait_for_event(stream.number, -2)
            self._access_now(stream.number, what, reads, writes)

    def _access_now(self, stream: int, what: str, reads: Iterable[int], writes: Iterable[int]) -> None:
        reads, writes = set(reads), set(writes)
        names = {number: [what] for number in reads | writes}
        errors = self._handler._handle_kernel_launch(stream, reads, writes, set(), what, names)
        self.races += [str(error) for error in errors]

    def _host_stream(self) -> int:
        if not hasattr(self._local, "host"):
            self._local.host = next(self.numbers)
            self.tell("_handle_stream_creation", self._local.host)
        number: int = self._local.host
        return number

    def _number_of(self, host: Tensor) -> int:
        return self._pinned[host.untyped_storage().data_ptr()]


def _overwrite(tensor: Tensor) -> None:
    storage = torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage())
    storage.fill_(255 if tensor.is_floating_point() else _POISON)  # all bits set are NaN


def _with(values: Any, change: Callable[[Any], Any]) -> Any:
    return tree_map(change, values)


def _meta(value: Any) -> Any:
    if isinstance(value, DeviceTensor):
        return value.meta
    return value.to("meta") if isinstance(value, Tensor) else value


class _Later:
    def __init__(self, cell: list[Tensor]) -> None:
        self.cell = cell


def _cell(value: Any) -> Any:
    return _Later(value.cell) if isinstance(value, DeviceTensor) else value


def _value(value: Any) -> Any:
    return value.cell[0] if isinstance(value, _Later) else value


def _meta_device(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**kwargs, "device": "meta"} if kwargs.get("device") is not None else kwargs


def _written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    found: list[Any] = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            found += value if isinstance(value, list | tuple) else [value]
    return found


def _is_view(func: Any) -> bool:
    if func.name().split(".")[0] in _SHARED_WITHOUT_SAYING:
        return True
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _picks_by_bool(func: Any, args: Any) -> bool:
    if not func.name().startswith("aten::index"):
        return False
    return any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_flatten(args[1:2])[0])
