"""A card that counts what makes the host wait: tensors say ``cuda:0``, their values are real and on the CPU.

Shapes, dtypes, devices and values are those of a run on a card, so whole stages run on it frame by frame, also
where a value decides what comes next. Every operation is looked at on the way:

* one that mixes devices raises, as it would on a card;
* one that makes the host wait is counted by its name and the line that called it: a value read (``.item()``,
  ``bool(tensor)``, ``.tolist()``), a result whose size depends on values (``nonzero``, a mask in brackets), a
  plain copy to the host (``.cpu()``) and a plain copy to the card (``torch.tensor(..., device=)``,
  ``.to(device)``, an index that lies on the host), which all wait for the card's earlier work;
* copies through :mod:`pipeline.core.device_stream` do not wait and are counted apart, and so are waits for them.

What it cannot do: autocast for CUDA, kernels that are written for a card (Triton), and races
(:mod:`tests.simulated_device` finds them).
"""

from __future__ import annotations

import inspect
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from pipeline.core import device_stream
from pipeline.core.device_stream import Event, Stream
from tests.fake_cuda import CUDA, PlainOperators, forget_tables

_ROOT = f"{Path(__file__).resolve().parent.parent}{os.sep}"
_WATCHED = (f"{_ROOT}stages{os.sep}", f"{_ROOT}pipeline{os.sep}")
_CPU = torch.device("cpu")
_READS_VALUES = frozenset({"_local_scalar_dense", "is_nonzero", "equal", "item"})
_SIZE_FROM_VALUES = frozenset(
    {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave"}
)
_WAITING_SOLVERS = frozenset({"_linalg_eigh", "linalg_eig", "_linalg_svd", "linalg_lstsq", "linalg_cholesky"})
"""They ask the card whether they have converged, or how large their result is."""


class CardTensor(Tensor):
    """A tensor on ``cuda:0`` whose values lie in ``held``, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> CardTensor:
        made: CardTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CUDA,
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"CardTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{func} outside of the card")


@dataclass
class Counts:
    """What was counted since the last :meth:`clear`.

    Attributes:
        waits: Operations that made the host wait, as ``name at file:line``.
        downloads: Copies to the host that do not wait.
        uploads: Copies to the card that do not wait.
        events: Waits of the host for an event, that is for a copy.
    """

    waits: Counter[str] = field(default_factory=Counter)
    downloads: int = 0
    uploads: int = 0
    events: int = 0

    def clear(self) -> None:
        """Begin to count anew."""
        self.waits.clear()
        self.downloads = self.uploads = self.events = 0


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, counts: Counts) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        leaves = tree_flatten((args, kwargs))[0]
        card = [leaf for leaf in leaves if isinstance(leaf, CardTensor)]
        host = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, CardTensor)]
        wanted = kwargs.get("device")
        to_card = torch.device(wanted).type == "cuda" if wanted is not None else bool(card)
        name = func.name().removeprefix("aten::").split(".")[0]
        if name == "_to_copy" or name == "copy_":
            self._count_copy(name, args, to_card)
        else:
            self._count(name, func, args, card)
            self._refuse_mixed(name, func, args, card, host)
        if wanted is not None:
            kwargs["device"] = _CPU
        result = func(*tree_map(_real, args), **tree_map(_real, kwargs))
        if not to_card or name in _READS_VALUES:
            return result
        known = {id(tensor.held): tensor for tensor in card}
        return tree_map(lambda value: _on_card(value, known), result)

    def _count_copy(self, name: str, args: Any, to_card: bool) -> None:
        source, target = (args[0], to_card) if name == "_to_copy" else (args[1], isinstance(args[0], CardTensor))
        if isinstance(source, CardTensor) and not target:
            self._wait("copy to the host")
        elif target and not isinstance(source, CardTensor) and not (name == "copy_" and source.ndim == 0):
            self._wait("copy to the card")

    def _count(self, name: str, func: Any, args: Any, card: list[CardTensor]) -> None:
        if not card:
            return
        if name in _READS_VALUES or name in _SIZE_FROM_VALUES or name in _WAITING_SOLVERS:
            self._wait(name)
        if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
            indices = [index for index in args[1] if isinstance(index, Tensor)]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self._wait("mask in brackets")
            if any(not isinstance(index, CardTensor) for index in indices):
                self._wait("index on the host")

    def _refuse_mixed(self, name: str, func: Any, args: Any, card: list[CardTensor], host: list[Tensor]) -> None:
        if not card or name.startswith(("index", "_index")):
            return
        if any(tensor.ndim for tensor in host):
            raise RuntimeError(f"{func.name()}: tensors on two devices, cuda:0 and cpu")

    def _wait(self, what: str) -> None:
        self._counts.waits[f"{what} at {_caller()}"] += 1


class _Driverless(PlainOperators):
    """What asks for a driver before the operators are reached."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.item, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.tolist, Tensor.numpy):
            return self._read(func, args, kwargs)
        if func is torch._has_compatible_shallow_copy_type:
            return False  # asked by Module.to
        if func is Tensor.to:
            return self._sent(args, kwargs)
        if func is Tensor.new_tensor and isinstance(args[0], CardTensor):
            return self._made(torch.tensor, args[1:], {"dtype": args[0].dtype, "device": CUDA, **kwargs})
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            return self._made(func, args, kwargs)
        return super().__torch_function__(func, types, args, kwargs)

    def _read(self, func: Any, args: Any, kwargs: Any) -> Any:
        if not isinstance(args[0], CardTensor):
            return func(*args, **kwargs)
        if func is Tensor.numpy:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is Tensor.tolist:
            return args[0].to(_CPU).tolist()
        value = torch.ops.aten._local_scalar_dense(args[0])
        return {Tensor.__bool__: bool, Tensor.__float__: float, Tensor.__int__: int}.get(func, lambda v: v)(value)

    def _sent(self, args: Any, kwargs: Any) -> Any:
        copy = kwargs.pop("copy", False)
        device, dtype, _, layout = torch._C._nn._parse_to(*args[1:], **kwargs)
        device, dtype = device or args[0].device, dtype or args[0].dtype
        if not copy and layout is None and device.type == args[0].device.type and dtype == args[0].dtype:
            return args[0]
        return torch.ops.aten._to_copy(args[0], device=device, dtype=dtype, memory_format=layout)

    def _made(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A new tensor on the card: of values of the host by a copy, else by the card itself."""
        made = func(*args, **{**kwargs, "device": _CPU})
        if func in (torch.tensor, torch.as_tensor):
            return torch.ops.aten._to_copy(made, device=CUDA)
        return made if isinstance(made, CardTensor) else CardTensor(made)


class _CountedEvent:
    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def wait(self) -> None:
        self._counts.events += 1

    def done(self) -> bool:
        return True

    def seconds_since(self, earlier: Event) -> float:
        return 0.0


class _CountedStream:
    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *problem: object) -> None: ...

    def record(self, *, timed: bool = False) -> Event:
        return _CountedEvent(self._counts)

    def wait_for(self, event: Event) -> None: ...


class CountedStreams:
    """The :class:`pipeline.core.device_stream.DeviceStreams` of the counted card."""

    is_asynchronous = True

    def __init__(self, counts: Counts) -> None:
        self.device = CUDA
        self._counts = counts
        self._pinned: set[int] = set()

    def new_stream(self) -> Stream:
        return _CountedStream(self._counts)

    def current(self) -> Stream:
        return _CountedStream(self._counts)

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        made = torch.empty(shape, dtype=dtype)
        self._pinned.add(made.untyped_storage().data_ptr())
        return made

    def upload(self, host: Tensor) -> Tensor:
        assert host.untyped_storage().data_ptr() in self._pinned, "a copy from memory that is not pinned waits"
        self._counts.uploads += 1
        return on_card(host)

    def download(self, values: Tensor, host: Tensor) -> None:
        assert isinstance(values, CardTensor)
        assert host.untyped_storage().data_ptr() in self._pinned, "a copy to memory that is not pinned waits"
        self._counts.downloads += 1
        host.copy_(values.held)

    def touch(self, host: Tensor, *, write: bool) -> None: ...

    def keep(self, tensors: Iterable[Tensor]) -> None: ...

    def synchronize(self) -> None:
        self._counts.events += 1

    def release_memory(self) -> None: ...

    def peak_bytes(self) -> int | None:
        return None

    def reset_peak(self) -> None: ...


@contextmanager
def counted_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counts]:
    """Inside, ``cuda:0`` is a card that counts; yields the counts."""
    counts = Counts()
    streams = CountedStreams(counts)
    real = device_stream.streams_of

    def streams_of(device: torch.device) -> Any:
        return streams if device.type == "cuda" else real(device)

    for module in _modules_with("streams_of"):
        monkeypatch.setattr(module, "streams_of", streams_of)
    torch._C._ensureCUDADeviceGuardSet()
    # Tensors that wrap others cannot tell both kinds apart; no_grad gives the same values.
    monkeypatch.setattr(torch.inference_mode, "__enter__", lambda mode: None)
    monkeypatch.setattr(torch.inference_mode, "__exit__", lambda mode, *problem: None)
    forget_tables()
    with _Operations(counts), _Driverless(), torch.no_grad():
        yield counts
    forget_tables()


def on_card(values: Tensor) -> CardTensor:
    """A tensor of the card with the values of one of the host; nothing is counted."""
    return CardTensor(values.detach().clone(memory_format=torch.preserve_format))


def move_to_card(module: nn.Module) -> None:
    """Replace a module's parameters and buffers by tensors of the card."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(on_card(parameter), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = on_card(buffer)


def _modules_with(name: str) -> list[Any]:
    return [
        module
        for key, module in list(sys.modules.items())
        if key.startswith(("stages.", "pipeline.")) and getattr(module, name, None) is getattr(device_stream, name)
    ]


def _real(value: Any) -> Any:
    return value.held if isinstance(value, CardTensor) else value


def _on_card(value: Any, known: dict[int, CardTensor]) -> Any:
    if not isinstance(value, Tensor) or isinstance(value, CardTensor):
        return value
    return known[id(value)] if id(value) in known else CardTensor(value)


def _caller() -> str:
    """The innermost line of the project, without its tests, that is at work."""
    frame = inspect.currentframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(_WATCHED):
            return f"{path.removeprefix(_ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "the test"
