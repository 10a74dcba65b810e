"""Upload of frames to the model's device as one uint8 batch, in parallel to the device's other work.

On CUDA a batch is written into page-locked memory and copied on a stream of its own, so the copy runs while the
device still computes the previous batch. Two buffers alternate; a buffer is reused only after its copy has
finished.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.extract.resize import ResizeMethod, resize_image

_NUM_BUFFERS = 2


class Uploader:
    """Resizes and uploads batches. Invariant: the tensor returned is never overwritten by a later call."""

    def __init__(self, device: torch.device, method: ResizeMethod) -> None:
        """Prepare for a device.

        Args:
            device: Where batches go.
            method: How frames are resized, see ``stages.extract.resize``.
        """
        self._device = device
        self._method: ResizeMethod = method
        self._buffers: list[Tensor] = []
        self._copied: list[torch.cuda.Event | None] = [None] * _NUM_BUFFERS
        self._turn = 0
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, images: Sequence[npt.NDArray[np.uint8]], size_hw: tuple[int, int]) -> Tensor:
        """Resize uint8 RGB images ``(H, W, 3)`` and return them as uint8 ``(B, h, w, 3)`` on the device."""
        shape = (len(images), *size_hw, 3)
        if self._stream is None:
            batch = np.empty(shape, np.uint8)
            self._fill(batch, images, size_hw)
            return torch.from_numpy(batch)
        pinned = self._next_buffer(shape)
        self._fill(pinned.numpy(), images, size_hw)
        with torch.cuda.stream(self._stream):
            on_device = pinned.to(self._device, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        self._copied[self._turn] = copied
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copied)
        # The memory belongs to the copy stream; without this it could be reused while the model still reads it.
        on_device.record_stream(current)
        return on_device

    def _fill(
        self, batch: npt.NDArray[np.uint8], images: Sequence[npt.NDArray[np.uint8]], size_hw: tuple[int, int]
    ) -> None:
        for row, image in zip(batch, images, strict=True):
            row[:] = resize_image(image, size_hw, self._method)

    def _next_buffer(self, shape: tuple[int, ...]) -> Tensor:
        self._turn = (self._turn + 1) % _NUM_BUFFERS
        copied = self._copied[self._turn]
        if copied is not None:
            copied.synchronize()
        count = int(np.prod(shape))
        if not self._buffers or self._buffers[0].numel() < count:
            if self._stream is not None:
                self._stream.synchronize()
            self._buffers = [torch.empty(count, dtype=torch.uint8, pin_memory=True) for _ in range(_NUM_BUFFERS)]
        return self._buffers[self._turn][:count].view(shape)
