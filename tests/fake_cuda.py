"""Fake CUDA tensors on a CPU build of torch: shapes, dtypes and devices are real, values are not.

An operation that mixes devices raises, as it would on a card, so a forward that runs here does not mix them. What
fake tensors cannot do: values (``.item()``, ``bool(tensor)``, ``nonzero``), copies with ``non_blocking``, streams
and events, ``Module.to``, autocast for CUDA. Brackets, ``contiguous`` and ``copy_`` ask for a CUDA driver before
fake tensors see them; :class:`PlainOperators` turns them into operators.
"""

from __future__ import annotations

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
            target, value = _get(args[0], args[1]), args[2]
            return torch.ops.aten.copy_(target, value) if isinstance(value, Tensor) else target.fill_(value)
        if func is Tensor.contiguous:
            return torch.ops.aten.clone(args[0], memory_format=torch.contiguous_format)
        if func is Tensor.copy_:
            return torch.ops.aten.copy_(*args)
        return func(*args, **(kwargs or {}))


def _get(tensor: Tensor, key: Any) -> Tensor:
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
        dim += 1
    return torch.ops.aten.index.Tensor(tensor, indices) if indices else tensor


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Everything made inside is fake; real CPU tensors may be read."""
    with FakeTensorMode(allow_non_fake_inputs=True), PlainOperators(), torch.inference_mode():
        yield


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
