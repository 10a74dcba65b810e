"""Packets parked on disk, so that a stage can see a stream twice without holding it in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from pipeline.core.grid import PatchGrid
from pipeline.core.records import Features, Frame, Packet


@dataclass(frozen=True, slots=True)
class _Header:
    """Everything of a packet that is not an array; small, kept in memory."""

    index: int
    pts_seconds: float
    grid: PatchGrid
    device: torch.device
    has_saliency: bool
    has_cls: bool
    extra: tuple[str, ...]


class PacketSpool:
    """A first-in, first-out store of packets in a temporary file.

    Images are kept exactly, features as float16. Packets come back in the order they went in, with frame and
    features; a spool takes packets before any later stage has added to them. Use it in a ``with``: the file goes
    away with it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Open the file in ``folder``, the system's folder for temporary files by default."""
        self._file: BinaryIO = tempfile.TemporaryFile(prefix="liftstream-", dir=folder)
        self._headers: list[_Header] = []
        self.num_bytes = 0

    def __enter__(self) -> PacketSpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._headers)

    def append(self, packet: Packet) -> None:
        """Park a packet.

        Raises:
            ValueError: It has no features, or a later stage's results.
        """
        features = packet.features
        later = [f.name for f in fields(packet) if f.name not in ("frame", "features")]
        if features is None or any(getattr(packet, name) is not None for name in later):
            raise ValueError("a spool takes packets that have features and nothing later")
        self._file.seek(0, 2)
        np.save(self._file, packet.frame.image)
        tensors = [features.data, features.saliency, features.cls, *features.extra.values()]
        for tensor in tensors:
            if tensor is not None:
                np.save(self._file, _half(tensor))
        self._headers.append(
            _Header(
                packet.frame.index,
                packet.frame.pts_seconds,
                features.grid,
                features.data.device,
                features.saliency is not None,
                features.cls is not None,
                tuple(features.extra),
            )
        )
        self.num_bytes = self._file.tell()

    def __iter__(self) -> Iterator[Packet]:
        """All packets, from the first."""
        self._file.seek(0)
        for header in self._headers:
            image = np.load(self._file)
            data = self._tensor(header)
            features = Features(data=data, grid=header.grid)
            if header.has_saliency:
                features = replace(features, saliency=self._tensor(header))
            if header.has_cls:
                features = replace(features, cls=self._tensor(header))
            features = replace(features, extra={name: self._tensor(header) for name in header.extra})
            yield Packet(frame=Frame(image, header.index, header.pts_seconds), features=features)

    def _tensor(self, header: _Header) -> Tensor:
        return torch.from_numpy(np.load(self._file)).float().to(header.device)


def _half(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    limit = float(np.finfo(np.float16).max)
    return np.asarray(tensor.detach().float().clamp(-limit, limit).cpu().numpy().astype(np.float16))
