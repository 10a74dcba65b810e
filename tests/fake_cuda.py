"""Fake CUDA tensors on a CPU build of torch: shapes, dtypes and devices are real, values are not.

An operation that mixes devices raises, as it would on a card, so a forward that runs here does not mix them. What
fake tensors cannot do: values (``.item()``, ``bool(tensor)``, ``nonzero``), copies with ``non_blocking``, streams
and events, ``Module.to``, autocast for CUDA. Brackets, ``contiguous`` and ``copy_`` ask for a CUDA driver before
fake tensors see them; :class:`PlainOperators` turns them into operators.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

CUDA = torch.device("cuda:0")


class PlainOperators(TorchFunctionMode):
    """Brackets by slice, select, unsqueeze, index and copy; ``contiguous`` by clone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the functions that need a driver, and pass on all others."""
        if func is Tensor.__getitem__:
            return _get(args[0], args[1])
        if func is Tensor.__setitem__:
            return _set(args[0], args[1], args[2])
        if func is Tensor.__invert__:
            return torch.ops.aten.bitwise_not(args[0])
        if func is Tensor.nonzero:
            return torch.ops.aten.nonzero(args[0])
        if func is Tensor.contiguous:
            return torch.ops.aten.clone(args[0], memory_format=torch.contiguous_format)
        if func is Tensor.copy_:
            return torch.ops.aten.copy_(*args)
        return func(*args, **(kwargs or {}))


def _get(tensor: Tensor, key: Any) -> Tensor:
    view, indices = _view_of(tensor, key)
    return torch.ops.aten.index.Tensor(view, indices) if indices else view


def _set(tensor: Tensor, key: Any, value: Any) -> None:
    view, indices = _view_of(tensor, key)
    if indices:
        values = value if isinstance(value, Tensor) else view.new_full((), value)
        torch.ops.aten.index_put_(view, indices, values)
    elif isinstance(value, Tensor):
        torch.ops.aten.copy_(view, value)
    else:
        view.fill_(value)


def _view_of(tensor: Tensor, key: Any) -> tuple[Tensor, list[Tensor | None]]:
    """What slices and numbers choose, and the index tensors that choose from that."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in [item for item in keys if not isinstance(item, Tensor)]:
        place = next(n for n, item in enumerate(keys) if item is Ellipsis)
        used = sum(item is not None for item in keys) - 1
        keys[place : place + 1] = [slice(None)] * (tensor.ndim - used)
    dim, indices = 0, list[Tensor | None]()
    for item in keys:
        if item is None:
            tensor = tensor.unsqueeze(dim)
        elif isinstance(item, int):
            tensor = tensor.select(dim, item)
            continue
        elif isinstance(item, slice):
            tensor = torch.ops.aten.slice.Tensor(tensor, dim, item.start, item.stop, item.step or 1)
        else:
            index = item if isinstance(item, Tensor) else torch.tensor(item)
            indices += [None] * (dim - len(indices)) + [index]
            if index.dtype == torch.bool:
                dim += index.ndim - 1
        dim += 1
    return tensor, indices


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Everything made inside is fake; real CPU tensors may be read."""
    forget_tables()
    with FakeTensorMode(allow_non_fake_inputs=True), PlainOperators(), torch.inference_mode():
        yield
    forget_tables()


def forget_tables() -> None:
    """Empty the caches of tables on a device, so that what is not on a real card stays in its test."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("stages.", "pipeline.")):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear") and "device" in inspect.signature(value).parameters:
                    value.cache_clear()


def move(module: nn.Module) -> None:
    """Replace a module's parameters and buffers by fake ones on the card; call inside :func:`fake_cuda`."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = torch.empty(parameter.shape, dtype=parameter.dtype, device=CUDA)
                part._parameters[name] = nn.Parameter(moved, requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA)
