"""From index masks at the frame's size to label maps on the feature grid, and back.

Onto the grid: nearest (DINO), bilinear (videowalk) or the share of the cell's area that each object covers.
Back: the soft maps are upsampled, optionally stretched channel by channel to [0, 1] (DINO's evaluation), and each
pixel takes the object with the largest value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.guided_filter import GuidedFilter
from pipeline.core.records import PatchGrid
from pipeline.core.resizing import shrunk
from pipeline.formats.masks import VOID
from stages.propagate.edges import follow_edges

Sampling = Literal["nearest", "bilinear", "area"]
Stretch = Literal["none", "channel", "pixel"]
IndexMask = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class EncodedMask:
    """Label maps of a given mask.

    Attributes:
        labels: float32 ``(K + 1, h, w)``, background first; sums to 1 over the channels.
        rescued: Ids of objects that no cell would have shown, kept at the cell they cover most.
    """

    labels: Tensor
    rescued: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FrameLabels:
    """Labels ``(K + 1, h s, w s)`` on the subdivided grid, the index mask, and one confidence per object."""

    fine: Tensor
    index_mask: IndexMask
    confidence: tuple[float, ...] = ()


def encode_mask(
    mask: IndexMask,
    object_ids: Sequence[int],
    grid: PatchGrid,
    *,
    sampling: Sampling = "nearest",
    device: torch.device | None = None,
) -> EncodedMask:
    """Label maps on the grid of an index mask.

    Args:
        mask: uint8 ``(H, W)``; void pixels (255) count for no object.
        object_ids: The ids that get channels 1 to K, in this order; others are background.
        grid: The feature grid.
        sampling: "nearest" takes the pixel that holds the cell's center, "bilinear" interpolates at the center,
            "area" takes the share of the cell's area outside void.
        device: Where the result goes.

    >>> grid = PatchGrid((2, 4), (1, 2), (2.0, 2.0), (1.0, 1.0))
    >>> mask = np.array([[5, 5, 5, 0], [5, 5, 0, 0]], np.uint8)
    >>> encode_mask(mask, [5], grid, sampling="area").labels[1].tolist()
    [[1.0, 0.25]]
    """
    pixels = torch.from_numpy(mask).to(device)
    # One object at a time: all of them at the frame's size in float64 would be gigabytes.
    sample = {"nearest": _sample_nearest, "bilinear": _sample_bilinear, "area": _sample_area}[sampling]
    objects = torch.zeros((len(object_ids), *grid.grid_hw), device=pixels.device)
    for k, number in enumerate(object_ids):
        objects[k] = sample(pixels, number, grid)
    known = pixels != VOID
    if sampling == "area" and not bool(known.all()):
        objects /= grid.sample_area(known[None].to(torch.float32)).clamp(min=1e-6)
    labels = torch.cat([1 - objects.sum(0, keepdim=True), objects]).clamp(0, 1)
    rescued = _rescue(labels, pixels, object_ids, grid)
    return EncodedMask(labels, tuple(object_ids[k] for k in rescued))


def pack_cells(labels: Tensor, parts: int) -> Tensor:
    """Label maps on a subdivided grid as more channels on the cells: ``(K, h s, w s)`` to ``(K s s, h, w)``."""
    return F.pixel_unshuffle(labels[:, None], parts).flatten(0, 1) if parts > 1 else labels


def unpack_cells(packed: Tensor, parts: int) -> Tensor:
    """Inverse of :func:`pack_cells`."""
    if parts == 1:
        return packed
    return F.pixel_shuffle(packed.view(-1, parts * parts, *packed.shape[1:]), parts)[:, 0]


def decode_labels(
    labels: Tensor,
    object_ids: Sequence[int],
    grid: PatchGrid,
    *,
    stretch: Stretch = "none",
    object_weight: float | Tensor = 1.0,
    upsample_factor: int | None = None,
) -> IndexMask:
    """The index mask, at the frame's size, of soft label maps.

    Args:
        labels: float32 ``(K + 1, h, w)``, background first.
        object_ids: The ids of channels 1 to K.
        grid: The feature grid.
        stretch: "channel" stretches each upsampled channel to [0, 1] over the frame (DINO); "pixel" each pixel
            over its channels (videowalk), which never changes the winner.
        object_weight: Factor on the objects' channels against the background's; ``(K, 1, 1)`` for one each.
        upsample_factor: Pixels per cell of the upsampled map, which then goes to the frame's size by nearest
            neighbor (DINO: the patch size). None upsamples straight to the frame's size.

    Returns:
        uint8 ``(H, W)``. Where channels are equal the first one wins.
    """
    winners = pixel_winners(
        labels, object_ids, grid, stretch=stretch, object_weight=object_weight, upsample_factor=upsample_factor
    )
    return winners.cpu().numpy()


def pixel_winners(
    labels: Tensor,
    object_ids: Sequence[int],
    grid: PatchGrid,
    *,
    stretch: Stretch = "none",
    object_weight: float | Tensor = 1.0,
    upsample_factor: int | None = None,
) -> Tensor:
    """The index mask of :func:`decode_labels` on the device of ``labels``; nothing waits for it."""
    size = grid.image_hw
    if upsample_factor is not None:
        size = (grid.grid_hw[0] * upsample_factor, grid.grid_hw[1] * upsample_factor)
    # One channel at a time: with many objects on a large frame all upsampled maps together are gigabytes.
    winner = labels.new_zeros(size, dtype=torch.uint8)
    highest: Tensor | None = None
    for channel, number in enumerate((0, *object_ids)):
        values = grid.upsample(labels[channel : channel + 1], size)[0]
        if stretch == "channel":
            values = stretch_channel(values)
        if channel and isinstance(object_weight, Tensor):
            values = values * object_weight[channel - 1]
        elif channel and object_weight != 1:
            values = values * object_weight
        if highest is None:
            highest = values
            continue
        winner.masked_fill_(values > highest, number)
        if channel < len(object_ids):
            highest = torch.maximum(highest, values)
    return resize_nearest(winner, grid.image_hw)


def refine_labels(
    labels: Tensor,
    image: npt.NDArray[np.uint8],
    grid: PatchGrid,
    *,
    cell_px: int,
    radius_px: int,
    epsilon: float,
    crf_weight: float = 0.0,
    stretch: Stretch = "none",
    object_weight: float | Tensor = 1.0,
) -> Tensor:
    """Soft maps smoothed along the frame's edges, at a working size of ``cell_px`` pixels per cell of ``grid``.

    Args:
        labels: float32 ``(K + 1, h', w')``, background first, on ``grid`` or a subdivision of it.
        image: uint8 ``(H, W, 3)``, the frame.
        grid: The feature grid.
        cell_px: Pixels per cell at the working size, so that the cost does not depend on the frame's size.
        radius_px: Radius of the guided filter at the working size.
        epsilon: Its epsilon, for colors in [0, 1].
        crf_weight: Of :func:`~stages.propagate.edges.follow_edges` after the filter; 0 leaves it out.
        stretch: "channel" stretches each channel to [0, 1] first, after which they are scaled to sum to 1.
        object_weight: Factor on the objects' channels against the background's; ``(K, 1, 1)`` for one each.

    Returns:
        float32 ``(K + 1, h'', w'')`` that covers the frame, on the device of ``labels``.
    """
    size = (grid.grid_hw[0] * cell_px, grid.grid_hw[1] * cell_px)
    guide = shrunk(image, size).astype(np.float32) / np.float32(255)
    fine = grid.subdivided(labels.shape[1] // grid.grid_hw[0])
    maps = fine.upsample(labels, size)
    if stretch == "channel":
        maps = torch.stack([stretch_channel(channel) for channel in maps])
        maps = maps / maps.sum(0).clamp(min=1e-6)
    smooth = GuidedFilter(guide, radius_px=radius_px, epsilon=epsilon)
    # The background is what the objects leave: the filter is linear, and keeps constants.
    objects = [torch.from_numpy(smooth(channel.cpu().numpy())) for channel in maps[1:]]
    if not objects:
        return maps
    filtered = torch.stack(objects).to(labels.device)
    background = 1 - filtered.sum(0, keepdim=True)
    weighted = torch.cat([background, filtered * object_weight])
    return follow_edges(weighted.clamp(min=0), guide, weight=crf_weight) if crf_weight else weighted


def stretch_channel(values: Tensor) -> Tensor:
    """One map stretched to [0, 1]; a map without positive values, or a constant one, stays as it is.

    >>> stretch_channel(torch.tensor([0.25, 0.5, 0.75])).tolist()
    [0.0, 0.5, 1.0]
    """
    low, high = values.amin(), values.amax()
    if not values.is_cpu:  # a card is not asked for a value
        return torch.where((high > 0) & (high != low), (values - low) / (high - low), values)
    if high <= 0 or high == low:
        return values
    return (values - low) / (high - low)


def resize_nearest(index_map: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Nearest neighbor as Pillow does it: output i reads input floor((i + 0.5) * in / out).

    >>> resize_nearest(torch.tensor([[1, 2, 3]]), (1, 2)).tolist()
    [[1, 3]]
    """
    if tuple(index_map.shape) == size_hw:
        return index_map
    rows, columns = (
        _nearest_picks(have, want, index_map.device) for have, want in zip(index_map.shape, size_hw, strict=True)
    )
    return index_map[rows[:, None], columns]


@lru_cache(maxsize=16)
def _nearest_picks(have: int, want: int, device: torch.device) -> Tensor:
    # Pillow adds the step up; where a position falls on a pixel's border the rounding of the sum decides.
    step = have / want
    positions = np.add.accumulate(np.r_[step * 0.5, np.full(want - 1, step)])
    with torch.inference_mode(False):
        return torch.from_numpy(positions.astype(np.int64)).clamp(max=have - 1).to(device)


def expected_iou(probs: Tensor, estimate: Tensor | None = None) -> tuple[float, ...]:
    """For each object the overlap of the cells it wins with an estimate of where it is.

    Were each cell the object's with its estimate as the probability, this is the expected intersection over the
    expected union: it falls where cells that it wins are in doubt, and where cells that it does not win may
    belong to it.

    Args:
        probs: float32 ``(K + 1, h, w)``, background first: the largest wins.
        estimate: The same, in [0, 1]; ``probs`` if None. The background is not read.

    Returns:
        K numbers in [0, 1]; 0 for an object that wins no cell.

    >>> expected_iou(torch.tensor([[[0.25, 0.5, 1.0]], [[0.75, 0.5, 0.0]]]))
    (0.5,)
    """
    estimate = probs if estimate is None else estimate
    winners = probs.argmax(0)
    values = []
    for channel in range(1, probs.shape[0]):
        won = winners == channel
        count = int(won.sum())
        inside, total = float(estimate[channel][won].sum()), float(estimate[channel].sum())
        values.append(inside / (count + total - inside) if count else 0.0)
    return tuple(values)


def _sample_nearest(pixels: Tensor, number: int, grid: PatchGrid) -> Tensor:
    if grid.fills_image:
        return (resize_nearest(pixels, grid.grid_hw) == number).to(torch.float32)
    return (grid.sample_nearest(pixels) == number).to(torch.float32)


def _sample_bilinear(pixels: Tensor, number: int, grid: PatchGrid) -> Tensor:
    return grid.sample_bilinear((pixels == number)[None].to(torch.float32))[0]


def _sample_area(pixels: Tensor, number: int, grid: PatchGrid) -> Tensor:
    return grid.sample_area((pixels == number)[None].to(torch.float32))[0]


def _rescue(labels: Tensor, pixels: Tensor, object_ids: Sequence[int], grid: PatchGrid) -> list[int]:
    """Give each object that wins no cell the cell it covers most; changes ``labels``, returns the objects."""
    winning = set(labels.argmax(0).flatten().tolist())
    lost = [k for k in range(len(object_ids)) if k + 1 not in winning and bool((pixels == object_ids[k]).any())]
    taken = torch.zeros(grid.num_cells, dtype=torch.bool, device=labels.device)
    for k in lost:
        cover = grid.sample_area((pixels == object_ids[k])[None].to(torch.float32))[0].flatten()
        cell = int(cover.masked_fill(taken, -1).argmax())
        taken[cell] = True
        labels.view(len(labels), -1)[:, cell] = 0
        labels.view(len(labels), -1)[k + 1, cell] = 1
    return lost
