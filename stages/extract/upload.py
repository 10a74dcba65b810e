"""Frames on their way to the model: one uint8 batch, uploaded beside the device's other work and resized there.

On an asynchronous device the frames are written into page-locked memory as they are and copied by a stream of its
own, so that the copy runs while the device computes the batch before. Two buffers alternate; one is filled again
only after its copy is done. On the CPU frames are resized by OpenCV and Pillow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.core.device_stream import DeviceStreams, Event, wait_for
from stages.extract.device_resize import resize_batch
from stages.extract.resize import ResizeMethod, resize_image

_NUM_BUFFERS = 2


class PinnedRing:
    """Pinned buffers in turn. Invariant: a buffer that is given out is not being copied from any more."""

    def __init__(self, streams: DeviceStreams, count: int = _NUM_BUFFERS) -> None:
        self._streams = streams
        self._buffers: list[Tensor | None] = [None] * count
        self._copied: list[Event | None] = [None] * count
        self._turn = 0

    def next(self, shape: tuple[int, ...]) -> Tensor:
        """A uint8 buffer to write to; waits for the copy that was made from its memory before."""
        self._turn = (self._turn + 1) % len(self._buffers)
        copied = self._copied[self._turn]
        if copied is not None:
            wait_for(copied)
        count = int(np.prod(shape))
        buffer = self._buffers[self._turn]
        if buffer is None or buffer.numel() < count:
            buffer = self._buffers[self._turn] = self._streams.pinned((count,), torch.uint8)
        self._streams.touch(buffer, write=True)
        return buffer[:count].view(shape)

    def copied_after(self, event: Event) -> None:
        """The copy from the buffer given out last is done at an event."""
        self._copied[self._turn] = event


class Uploader:
    """Uploads and resizes batches. Invariant: the tensor returned is never overwritten by a later call."""

    def __init__(self, streams: DeviceStreams, method: ResizeMethod) -> None:
        """Prepare for a device.

        Args:
            streams: Of the device where batches go.
            method: How frames are resized, see ``stages.extract.resize``.
        """
        self._streams = streams
        self._method: ResizeMethod = method
        self._ring = PinnedRing(streams)
        self._copies = streams.new_stream()

    def __call__(
        self,
        images: Sequence[npt.NDArray[np.uint8]],
        size_hw: tuple[int, int],
        on_device: Sequence[Tensor | None] = (),
    ) -> Tensor:
        """Images of one size, resized, on the device.

        Args:
            images: uint8 RGB ``(H, W, 3)``.
            size_hw: The size to resize to.
            on_device: The same images where the card has decoded them; used if they are all on this device.

        Returns:
            float32 ``(B, 3, *size_hw)`` in [0, 255].
        """
        there = [image for image in on_device if image is not None and image.device == self._streams.device]
        if self._streams.is_asynchronous and len(there) == len(images):
            self._streams.keep(there)
            return resize_batch(torch.stack(there), size_hw, self._method)
        if self._streams.is_asynchronous:
            return resize_batch(self._upload(images), size_hw, self._method)
        batch = np.empty((len(images), *size_hw, 3), np.uint8)
        for row, image in zip(batch, images, strict=True):
            row[:] = resize_image(image, size_hw, self._method)
        return torch.from_numpy(batch).permute(0, 3, 1, 2).float()

    def _upload(self, images: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        pinned = self._ring.next((len(images), *images[0].shape))
        for row, image in zip(pinned.numpy(), images, strict=True):
            np.copyto(row, image)
        with self._copies:
            on_device = self._streams.upload(pinned)
            copied = self._copies.record()
        self._ring.copied_after(copied)
        self._streams.current().wait_for(copied)
        # The memory belongs to the copying stream; without this it could be reused while the model still reads it.
        self._streams.keep([on_device])
        return on_device
