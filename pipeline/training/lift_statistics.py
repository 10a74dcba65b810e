"""Held-out scores of a LiFT, and the statistics that are measured rather than trained: batch norms, lengths."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.training.lift_data import Batch, FeatureCache
from stages.extract.lift.network import Lift

LEVELS = (1, 2)
"""The scales that are lifted: a half to the whole, a quarter to a half."""


def mean_cosine(found: Tensor, target: Tensor) -> float:
    """Mean cosine similarity over the cells of two ``(B, C, h, w)`` maps."""
    return float(F.cosine_similarity(found.float(), target, dim=1).mean())


@torch.inference_mode()
def evaluate(model: Lift, cache: FeatureCache, *, device: torch.device, bf16: bool = False) -> dict[str, float]:
    """Cosine to the true features at double resolution on the held-out images.

    Returns:
        ``lift_1`` and ``bilinear_1`` for the half to the whole scale, ``lift_2`` and ``bilinear_2`` for the
        quarter to the half, ``lift_twice`` and ``bilinear_twice`` for the quarter to the whole; means over cells.
    """
    model.eval()
    totals: dict[str, list[float]] = {}
    for sample in cache.held_out_samples():
        batch = cache.batch([sample], device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            lifted = {level: model(batch.images[level - 1], batch.features[level]).float() for level in LEVELS}
            twice = model(batch.images[1], batch.features[2], iterations=2).float()
        for level in LEVELS:
            target = batch.features[level - 1]
            totals.setdefault(f"lift_{level}", []).append(mean_cosine(lifted[level], target))
            totals.setdefault(f"bilinear_{level}", []).append(
                mean_cosine(_bilinear(batch.features[level], 2), target)
            )
        totals.setdefault("lift_twice", []).append(mean_cosine(twice, batch.features[0]))
        bilinear = _bilinear(batch.features[2], 4)
        totals.setdefault("bilinear_twice", []).append(mean_cosine(bilinear, batch.features[0]))
    return {name: sum(values) / len(values) for name, values in sorted(totals.items())}


def _bilinear(maps: Tensor, factor: int) -> Tensor:
    return F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)


@torch.no_grad()
def settle_batch_norms(model: Lift, batches: Iterable[Batch]) -> None:
    """Set the batch norms' statistics to the average over ``batches`` at all lifted scales."""
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    model.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for batch in batches:
        for level in LEVELS:
            model(batch.images[level - 1], batch.features[level])
    for norm in norms:
        norm.momentum = 0.1
    model.eval()


@torch.no_grad()
def match_norms(model: Lift, batches: Iterable[Batch]) -> float:
    """Scale the last layer so that lifted features have the mean length of the true ones.

    The cosine distance does not depend on lengths, but a second pass does: it expects the ViT's lengths.

    Returns:
        The factor.
    """
    model.eval()
    found, wanted = 0.0, 0.0
    for batch in batches:
        for level in LEVELS:
            found += float(model(batch.images[level - 1], batch.features[level]).norm(dim=1).mean())
            wanted += float(batch.features[level - 1].norm(dim=1).mean())
    factor = wanted / max(found, 1e-12)
    for parameter in model.outc.parameters():
        parameter.mul_(factor)
    return factor


def hold_batch_norms(model: Lift) -> None:
    """Normalize with fixed statistics: those of a small batch vary more with its images than training changes."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
