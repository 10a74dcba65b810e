"""Maps on a card: what OpenCV and SciPy do to maps on the host, with the same numbers and without a wait.

Everything takes and gives tensors of one device. No value decides in Python, and nothing is picked by a mask.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_blur(maps: Tensor, sigma: float) -> Tensor:
    """``cv2.GaussianBlur`` of float32 maps ``(K, h, w)``: the window by sigma, mirrored at the border pixel."""
    weights = _gaussian(sigma, maps.device)
    reach = len(weights) // 2
    for dim in (1, 2):
        length = maps.shape[dim]
        padded = maps.index_select(dim, _mirrored(length, reach, maps.device))
        maps = (padded.unfold(dim, len(weights), 1) * weights).sum(-1)
    return maps


def resize_linear(maps: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """``cv2.resize`` with ``INTER_LINEAR`` of maps ``(K, h, w)``."""
    return F.interpolate(maps[None], size=size_hw, mode="bilinear", align_corners=False)[0]


def resize_nearest(index_map: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """``cv2.resize`` with ``INTER_NEAREST`` of a map ``(h, w)``: output i reads input ``floor(i * in / out)``."""
    for dim, wanted in enumerate(size_hw):
        index_map = index_map.index_select(dim, _floors(index_map.shape[dim], wanted, index_map.device))
    return index_map


def remap_linear(maps: Tensor, where: Tensor) -> Tensor:
    """``cv2.remap`` with ``INTER_LINEAR`` of maps ``(K, h, w)`` at positions ``(H, W, 2)`` as (x, y); 0 outside.

    As OpenCV 5 does it; OpenCV 4 rounds positions to 1/32 pixel.
    """
    height, width = maps.shape[1:]
    first = torch.floor(where)
    share = where - first
    x, y = first[..., 0].long(), first[..., 1].long()
    flat, total = maps.flatten(1), maps.new_zeros(len(maps), *where.shape[:2])
    for down in (0, 1):
        for right in (0, 1):
            row, column = y + down, x + right
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            weight = torch.abs(1 - down - share[..., 1]) * torch.abs(1 - right - share[..., 0]) * inside
            total = total + flat.index_select(1, place.flatten()).view_as(total) * weight
    return total


def small_pieces(mask: Tensor, least_share: float) -> Tensor:
    """Cells of pieces of a mask that are smaller than a share of the largest piece; bool ``(h, w)``.

    Cells that touch at a side or a corner are one piece. Every cell points to another cell of its piece, itself at
    first. In each round a cell and the one it points to take the furthest pointer around the cell, and pointers
    are followed once (Zhang, Azad, Hu, FastSV, 2020). That takes about log2 of the number of cells rounds; twice
    as many are done, so that nothing needs to be asked.
    """
    count = mask.numel()
    numbers = torch.arange(1, count + 1, device=mask.device).view_as(mask) * mask
    flat = numbers.flatten()
    for _ in range(2 * math.ceil(math.log2(count + 1))):
        around = F.max_pool2d(flat.view(1, 1, *mask.shape).double(), 3, stride=1, padding=1)
        furthest = around.flatten().long() * mask.flatten()
        # Cell 0 of the table stands for cells outside of the mask, which point nowhere.
        table = torch.cat([flat.new_zeros(1), torch.maximum(flat, furthest)])
        table = table.scatter_reduce(0, flat, furthest, "amax")
        table = table * torch.cat([flat.new_zeros(1), mask.flatten().long()])
        flat = table[1:]
        flat = table.index_select(0, flat)
    areas = torch.zeros(count + 1, dtype=torch.int64, device=mask.device)
    areas = areas.index_add(0, flat, mask.flatten().long())
    areas = areas.double()
    small = areas.index_select(0, flat) < least_share * areas.amax()
    return small.view_as(mask) & mask


@lru_cache(maxsize=16)
def _gaussian(sigma: float, device: torch.device) -> Tensor:
    size = round(sigma * 8 + 1) | 1
    with torch.inference_mode(False):
        return torch.from_numpy(cv2.getGaussianKernel(size, sigma, cv2.CV_32F).ravel()).to(device)


@lru_cache(maxsize=32)
def _mirrored(length: int, reach: int, device: torch.device) -> Tensor:
    """Positions from ``-reach`` on, mirrored so that the border pixel is there once."""
    period = max(2 * length - 2, 1)
    where = np.arange(-reach, length + reach) % period
    with torch.inference_mode(False):
        return torch.from_numpy(np.where(where >= length, period - where, where)).to(device)


@lru_cache(maxsize=32)
def _floors(have: int, wanted: int, device: torch.device) -> Tensor:
    where = np.floor(np.arange(wanted) * (1.0 / (wanted / have))).astype(np.int64)
    with torch.inference_mode(False):
        return torch.from_numpy(np.minimum(where, have - 1)).to(device)
