"""Resizing on the device a batch of uint8 frames, with the numbers that OpenCV and Pillow give on the host.

Every method is separable: an output pixel is a weighted sum of a few input pixels per axis. So a resize is a few
gathers per axis. Results are rounded to whole levels, as on the host; OpenCV and Pillow calculate with rounded
weights, so single pixels differ by one level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.extract.resize import ResizeMethod

_SUPPORT = {"bilinear_antialias": 1.0, "bicubic": 2.0, "lanczos": 3.0}


@dataclass(frozen=True, slots=True)
class Taps:
    """What an axis reads: position and weight of the k-th input of each output.

    Attributes:
        index: int64 ``(k, out)``.
        weight: float32 ``(k, out)``; sums to 1 over k.
    """

    index: Tensor
    weight: Tensor


def resize_batch(batch: Tensor, size_hw: tuple[int, int], method: ResizeMethod) -> Tensor:
    """Resize uint8 frames ``(B, H, W, 3)`` to float32 ``(B, 3, *size_hw)`` with whole values in [0, 255]."""
    maps = batch.permute(0, 3, 1, 2)
    height, width = maps.shape[-2:]
    if (height, width) == size_hw:
        return maps.float()
    grows = size_hw[0] > height or size_hw[1] > width
    # Pillow rounds between the axes, and begins with the one after which fewer pixels are left.
    rounds = method in _SUPPORT
    axes = [(-1, size_hw[1], width), (-2, size_hw[0], height)]
    if size_hw[0] * width < height * size_hw[1]:
        axes.reverse()
    for axis, wanted, length in axes:
        if wanted != length:
            maps = _along(maps, axis, _taps(length, wanted, method, grows, maps.device), rounds=rounds)
    return maps if rounds else maps.add_(0.5).floor_().clamp_(0, 255)


def _along(maps: Tensor, axis: int, taps: Taps, *, rounds: bool) -> Tensor:
    shape = (-1, 1) if axis == -2 else (-1,)
    total: Tensor | None = None
    for index, weight in zip(taps.index, taps.weight, strict=True):
        picked = maps.index_select(axis, index).float().mul_(weight.view(shape))
        total = picked if total is None else total.add_(picked)
    assert total is not None
    return total.add_(0.5).floor_().clamp_(0, 255) if rounds else total


@lru_cache(maxsize=32)
def _taps(length: int, wanted: int, method: ResizeMethod, grows: bool, device: torch.device) -> Taps:
    """The taps of an axis on a device; made once per size."""
    if method in _SUPPORT:
        index, weight = _filter_taps(length, wanted, method)
    elif method == "area" and not grows:
        index, weight = _area_taps(length, wanted)
    else:
        index, weight = _linear_taps(length, wanted, area=method == "area")
    with torch.inference_mode(False):
        return Taps(torch.from_numpy(index).to(device), torch.from_numpy(weight.astype(np.float32)).to(device))


_Arrays = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]


def _area_taps(length: int, wanted: int) -> _Arrays:
    """The share of every input pixel in an output pixel's extent."""
    scale = length / wanted
    start = np.arange(wanted) * scale
    first = np.floor(start + 1e-9).astype(np.int64)
    count = math.ceil(scale - 1e-9) + 1
    index = first + np.arange(count)[:, None]
    weight = np.clip(np.minimum(index + 1, start + scale) - np.maximum(index, start), 0, None)
    weight[weight < 1e-3 / scale] = 0  # OpenCV leaves out what is smaller
    return np.minimum(index, length - 1), weight / weight.sum(axis=0)


def _linear_taps(length: int, wanted: int, *, area: bool) -> _Arrays:
    """The two neighbors of an output pixel's center; ``area`` as OpenCV does it where a picture grows."""
    scale = length / wanted
    out = np.arange(wanted)
    if area:
        first = np.floor(out * scale).astype(np.int64)
        share = (out + 1) - (first + 1) / scale
        share = np.where(share <= 0, 0.0, share - np.floor(share))
    else:
        where = (out + 0.5) * scale - 0.5
        first = np.floor(where).astype(np.int64)
        share = where - first
    share = np.where((first < 0) | (first >= length - 1), 0.0, share)
    first = first.clip(0, length - 1)
    return np.stack([first, np.minimum(first + 1, length - 1)]), np.stack([1 - share, share])


def _filter_taps(length: int, wanted: int, method: ResizeMethod) -> _Arrays:
    """Pillow's taps: a filter that is widened by the factor of shrinking."""
    scale = length / wanted
    widened = max(scale, 1.0)
    reach = _SUPPORT[method] * widened
    center = (np.arange(wanted) + 0.5) * scale
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((center + reach + 0.5).astype(np.int64), length)
    index = first + np.arange(int((last - first).max()))[:, None]
    weight = _kernel((index + 0.5 - center) / widened, method)
    weight[index >= last] = 0
    return np.minimum(index, length - 1), weight / weight.sum(axis=0)


def _kernel(x: npt.NDArray[np.float64], method: ResizeMethod) -> npt.NDArray[np.float64]:
    away = np.abs(x)
    if method == "bilinear_antialias":
        return np.asarray(np.clip(1 - away, 0, None))
    if method == "lanczos":
        return np.where(away < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    a = -0.5
    near = ((a + 2) * away - (a + 3)) * away**2 + 1
    far = (((away - 5) * away + 8) * away - 4) * a
    found: npt.NDArray[np.float64] = np.where(away < 1, near, np.where(away < 2, far, 0.0))
    return found
