"""From soft maps to the frame's mask and confidence on the card, with one small copy to the host per frame.

The same numbers as ``refine_labels``, ``decode_labels`` and ``expected_iou`` of ``label_maps``, to float rounding,
written without anything that makes the host wait: no value decides in Python, and nothing is picked by a mask.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.device_filter import DeviceGuidedFilter
from pipeline.core.device_stream import DeviceStreams, streams_of
from pipeline.core.host_copy import fetch, send
from pipeline.core.records import PatchGrid
from pipeline.core.resizing import shrunk
from stages.propagate import edges
from stages.propagate.config import PropagateConfig
from stages.propagate.label_maps import FrameLabels, pixel_winners, stretch_channel
from stages.propagate.thresholds import weights_of_objects

_LEAST_SUM = 1e-6


def read_out(
    fine: Tensor,
    estimate: Tensor,
    image: npt.NDArray[np.uint8],
    grid: PatchGrid,
    object_ids: tuple[int, ...],
    config: PropagateConfig,
    streams: DeviceStreams | None = None,
    *,
    shown: Tensor | None = None,
) -> FrameLabels:
    """The index mask and confidence of propagated labels.

    Args:
        fine: float32 ``(K + 1, h s, w s)``, background first.
        estimate: What the confidence compares them with, see ``expected_iou``.
        image: uint8 ``(H, W, 3)``, the frame.
        grid: The feature grid.
        object_ids: The K ids.
        config: Of the stage.
        streams: The device's; found from ``fine`` if None.
        shown: The labels that the index mask is made of, of the shape of ``fine``; ``fine`` if None.
    """
    streams = streams or streams_of(fine.device)
    confidence = iou_on_device(fine, estimate)
    weights = weights_of_objects(config.object_weight, confidence)
    shown = fine if shown is None else shown
    mask = mask_on_device(shown, image, grid, object_ids, config, streams, weights=weights)
    flat = torch.cat([mask.flatten(), confidence.view(torch.uint8)])
    (values,) = fetch(streams, [flat])
    size = grid.image_hw
    pixels = size[0] * size[1]
    numbers = np.frombuffer(values[pixels:].tobytes(), np.float32)
    return FrameLabels(fine, values[:pixels].reshape(size), tuple(float(value) for value in numbers))


def mask_on_device(
    fine: Tensor,
    image: npt.NDArray[np.uint8],
    grid: PatchGrid,
    object_ids: tuple[int, ...],
    config: PropagateConfig,
    streams: DeviceStreams,
    *,
    weights: float | Tensor,
) -> Tensor:
    """The index mask, uint8 ``(H, W)``, on the device."""
    if not config.refine.enabled:
        return pixel_winners(
            fine,
            object_ids,
            grid.subdivided(config.label_cells),
            stretch=config.stretch,
            object_weight=weights,
            upsample_factor=config.upsample_factor,
        )
    size = (grid.grid_hw[0] * config.refine.cell_px, grid.grid_hw[1] * config.refine.cell_px)
    small = shrunk(image, size)
    guide = send(streams, small).permute(2, 0, 1).float() / 255
    maps = grid.subdivided(fine.shape[1] // grid.grid_hw[0]).upsample(fine, size)
    if config.stretch == "channel":
        maps = torch.stack([stretch_channel(channel) for channel in maps])
        maps = maps / maps.sum(0).clamp(min=_LEAST_SUM)
    if len(maps) > 1:
        smooth = DeviceGuidedFilter(guide, radius_px=config.refine.radius_px, epsilon=config.refine.epsilon)
        filtered = torch.stack([smooth(channel) for channel in maps[1:]])
        background = 1 - filtered.sum(0, keepdim=True)
        maps = torch.cat([background, filtered * weights])
        if config.refine.crf_weight:
            color = cv2.cvtColor(small.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2LAB)
            lab = send(streams, color).permute(2, 0, 1)
            maps = follow_edges_everywhere(maps.clamp(min=0), lab, weight=config.refine.crf_weight)
    return pixel_winners(maps, object_ids, PatchGrid.covering(grid.image_hw, size))


def iou_on_device(probs: Tensor, estimate: Tensor) -> Tensor:
    """``expected_iou`` as a float32 tensor ``(K,)``."""
    objects = torch.arange(1, probs.shape[0], device=probs.device)
    won = (probs.argmax(0)[None] == objects[:, None, None]).to(estimate.dtype)
    count = won.sum((1, 2))
    inside, total = (won * estimate[1:]).sum((1, 2)), estimate[1:].sum((1, 2))
    return torch.where(count > 0, inside / (count + total - inside), 0.0)


def follow_edges_everywhere(probs: Tensor, lab: Tensor, *, weight: float) -> Tensor:
    """``edges.follow_edges`` with every pixel worked on and the certain ones left as they are.

    Args:
        probs: float32 ``(K, h, w)``, not negative.
        lab: float32 ``(3, h, w)``, the guide in L*a*b*.
        weight: Of the neighbors.
    """
    own = probs / probs.sum(0, keepdim=True).clamp(min=_LEAST_SUM)
    uncertain = own.amax(0) < edges.CERTAIN
    # Objects that are not in the frame take no part.
    seen = (own.amax((1, 2)) > edges.LEAST)[:, None, None]
    kernels = _kernels(lab)
    unary = own.clamp(min=edges.LEAST).log()
    labels = own
    for _ in range(edges.ITERATIONS):
        around = _around(labels)
        messages = (around[:, 0] * kernels[0]).sum(1)
        for row in range(1, len(kernels)):  # a row at a time bounds the memory
            messages += (around[:, row] * kernels[row]).sum(1)
        scores = (unary + weight * messages).masked_fill(~seen, -torch.inf)
        labels = torch.where(uncertain, torch.softmax(scores, dim=0), labels)
    return torch.where(seen | ~uncertain.any(), labels, 0.0)


def _kernels(lab: Tensor) -> Tensor:
    """Weights of the neighbors by offset down and right ``(n, n, h, w)``; 0 for the pixel itself."""
    apart = ((_around(lab) - lab[:, None, None]) ** 2).sum(0)
    steps = torch.arange(-edges.RADIUS_PX, edges.RADIUS_PX + 1, edges.STEP_PX, device=lab.device)
    away = (steps[:, None] ** 2 + steps**2)[:, :, None, None]
    kernels = torch.exp(-apart / (2 * edges.SIGMA_COLOR**2) - away / (2 * edges.SIGMA_PX**2)) * (away > 0)
    return kernels / (kernels.sum((0, 1)) + edges.SPREAD)


def _around(maps: Tensor) -> Tensor:
    """Maps ``(K, h, w)`` as seen by offset down and right, a view ``(K, n, n, h, w)``; the border is repeated."""
    reach, height, width = edges.RADIUS_PX, *maps.shape[1:]
    padded = F.pad(maps[None], (reach, reach, reach, reach), mode="replicate")[0]
    return padded.unfold(1, height, edges.STEP_PX).unfold(2, width, edges.STEP_PX)
