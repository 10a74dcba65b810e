"""Results of the device on their way to the host: one asynchronous copy, one wait when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.core.device_stream import DeviceStreams, Stream, streams_of, wait_for


class HostCopy:
    """Tensors of the device copied to pinned memory of the host, all in one copy.

    Args:
        streams: The device.
        values: Tensors of one dtype, made by the current stream.
        by: The stream that copies, after the work given to the current one so far; the current one if None.
    """

    def __init__(self, streams: DeviceStreams, values: Sequence[Tensor], by: Stream | None = None) -> None:
        self._streams = streams
        self._shapes = [tuple(value.shape) for value in values]
        flat = torch.cat([value.reshape(-1) for value in values])
        self._host = streams.pinned((flat.numel(),), flat.dtype)
        if by is not None:
            by.wait_for(streams.current().record())
        with by or streams.current() as stream:
            streams.keep([flat])
            streams.download(flat, self._host)
            self._copied = stream.record()
        self._arrays: list[npt.NDArray[Any]] | None = None

    def arrays(self) -> list[npt.NDArray[Any]]:
        """The values; waits until they have arrived. They share memory that nothing writes to again."""
        if self._arrays is None:
            wait_for(self._copied)
            self._streams.touch(self._host, write=False)
            whole, start, found = self._host.numpy(), 0, []
            for shape in self._shapes:
                count = int(np.prod(shape))
                found.append(whole[start : start + count].reshape(shape))
                start += count
            self._arrays = found
        return self._arrays


@dataclass(frozen=True, slots=True)
class HostFeatures:
    """One frame's main facet and saliency in a copy of a whole batch.

    Attributes:
        copy: Of the data of every frame ``(C, h, w)``, then, where there is one, of every saliency ``(h, w)``.
        row: Where the frame's data is in the copy; ``frames`` further is its saliency.
        frames: Frames in the batch.
    """

    copy: HostCopy
    row: int
    frames: int

    def data(self) -> npt.NDArray[np.float32]:
        """The main facet, float32 ``(C, h, w)``."""
        return self.copy.arrays()[self.row]

    def saliency(self) -> npt.NDArray[np.float32]:
        """The saliency, float32 ``(h, w)``; only where the features have one."""
        return self.copy.arrays()[self.frames + self.row]


def fetch(streams: DeviceStreams, values: Sequence[Tensor]) -> list[npt.NDArray[Any]]:
    """Tensors of one dtype on the host: one copy by the current stream, and a wait for it alone."""
    if not streams.is_asynchronous:
        return [value.numpy() for value in values]
    return HostCopy(streams, values).arrays()


def send(streams: DeviceStreams, values: npt.NDArray[Any]) -> Tensor:
    """An array on the device: copied to pinned memory, and from there by the current stream without a wait."""
    array = np.ascontiguousarray(values)
    if not streams.is_asynchronous:
        return torch.from_numpy(array)
    host = streams.pinned(array.shape, torch.from_numpy(array[:0]).dtype)
    streams.touch(host, write=True)
    np.copyto(host.numpy(), array)
    return streams.upload(host)


def send_like(host: Tensor, like: Tensor) -> Tensor:
    """A tensor of the host on the device of another one; itself where that is the CPU."""
    return host if like.is_cpu else send(streams_of(like.device), host.numpy())


def send_all(streams: DeviceStreams, arrays: Sequence[npt.NDArray[Any]]) -> list[Tensor]:
    """Arrays of one dtype on the device by one copy; the tensors are views of it."""
    if not streams.is_asynchronous:
        return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    sent = send(streams, np.concatenate([array.ravel() for array in arrays]))
    parts = torch.split_with_sizes(sent, [array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]
