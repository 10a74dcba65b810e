"""Packets of a scene with a known object."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from pipeline.core.grid import PatchGrid
from pipeline.core.records import Features, Frame, Packet

SIZE, CELL, CHANNELS = (12, 16), 8, 24
FAST = {
    "kmeans_iterations": 10,
    "kmeans_redo": 1,
    "sample_interval": 1,
    "num_parts": 2,
    "warmup_frames": 4,
    "part_ids": True,
}


def moving_square(
    count: int, *, scene: int = 0, first: int = 0, salient: bool = True, noise: float = 0.08
) -> Iterator[Packet]:
    """A square of two halves that wanders over a background; another ``scene`` shows other things."""
    grid = PatchGrid.from_input((96, 128), (96, 128), patch_px=CELL, stride_px=CELL)
    looks = np.linalg.qr(np.random.default_rng(100 + scene).standard_normal((CHANNELS, CHANNELS)))[0]
    colors = np.random.default_rng(200 + scene).integers(0, 255, (3, 3))
    for index in range(first, first + count):
        rng = np.random.default_rng(index)
        kind = np.zeros(SIZE, int)
        left = 3 + index % 5
        kind[3:8, left : left + 3] = 1
        kind[3:8, left + 3 : left + 6] = 2
        data = looks[kind] + noise * rng.standard_normal((*SIZE, CHANNELS))
        image = np.kron(colors[kind], np.ones((CELL, CELL, 1))).astype(np.uint8)
        saliency = torch.from_numpy((kind > 0).astype(np.float32)) if salient else torch.zeros(SIZE)
        features = Features(torch.from_numpy(data).float().permute(2, 0, 1).contiguous(), grid, saliency)
        yield Packet(Frame(image, index, index / 25), features)
