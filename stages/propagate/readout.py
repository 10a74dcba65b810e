"""From soft maps to the frame's mask and confidence, on the CPU; ``device_readout`` does the same on a card."""

from __future__ import annotations

import numpy.typing as npt
import torch
from numpy import uint8
from torch import Tensor

from pipeline.core.records import PatchGrid
from stages.propagate.config import PropagateConfig
from stages.propagate.label_maps import FrameLabels, IndexMask, decode_labels, expected_iou, refine_labels
from stages.propagate.thresholds import weights_of_objects


def read_out(
    fine: Tensor,
    estimate: Tensor,
    image: npt.NDArray[uint8],
    grid: PatchGrid,
    object_ids: tuple[int, ...],
    config: PropagateConfig,
    *,
    shown: Tensor,
) -> FrameLabels:
    """The index mask and confidence of propagated labels.

    Args:
        fine: float32 ``(K + 1, h s, w s)``, background first.
        estimate: What the confidence compares them with, see ``expected_iou``; of the same shape.
        image: uint8 ``(H, W, 3)``, the frame.
        grid: The feature grid.
        object_ids: The K ids.
        config: Of the stage.
        shown: The labels that the index mask is made of, of the shape of ``fine``.
    """
    confidence = expected_iou(fine, estimate)
    weights = weights_of_objects(config.object_weight, torch.tensor(confidence))
    return FrameLabels(fine, _mask(shown, image, grid, object_ids, config, weights), confidence)


def _mask(
    shown: Tensor,
    image: npt.NDArray[uint8],
    grid: PatchGrid,
    object_ids: tuple[int, ...],
    config: PropagateConfig,
    weights: float | Tensor,
) -> IndexMask:
    refine = config.refine
    if not refine.enabled:
        return decode_labels(
            shown,
            object_ids,
            grid.subdivided(config.label_cells),
            stretch=config.stretch,
            object_weight=weights,
            upsample_factor=config.upsample_factor,
        )
    refined = refine_labels(
        shown,
        image,
        grid,
        cell_px=refine.cell_px,
        radius_px=refine.radius_px,
        epsilon=refine.epsilon,
        crf_weight=refine.crf_weight,
        stretch=config.stretch,
        object_weight=weights,
    )
    return decode_labels(
        refined, object_ids, PatchGrid.covering(grid.image_hw, (refined.shape[1], refined.shape[2]))
    )
