"""Foreground cues from dense features, each a map in [0, 1] an image.

* CLS attention (Amir et al. 2021, section 3.3) comes from the backbone itself. It is good for DINO and poor for
  DINOv2, whose attention sinks into a few background tokens.
* First principal component (Oquab et al. 2023, figure 1): the leading component of the centred descriptors
  separates the object from its surroundings.
* Normalised cut (Shi and Malik 2000; on ViT features TokenCut, Wang et al. 2022): the second eigenvector of the
  graph of cosine similarities.

An eigenvector has no sign; the side that touches the image border less is the foreground.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models.backbone import Backbone, BackboneOutput, stretch

SaliencyCue = Literal["auto", "cls_attention", "first_pc", "ncut", "none"]

_POWER_STEPS: Final = 12


def first_component_saliency(features: Tensor) -> Tensor:
    """The leading principal component of each image's descriptors, as a map.

    Args:
        features: ``(B, C, h, w)``, floating point, not normalised.

    Returns:
        float32 ``(B, h, w)`` in [0, 1].
    """
    points = features.flatten(2).transpose(1, 2).float()
    points = points - points.mean(dim=1, keepdim=True)
    gram = points.transpose(1, 2) @ points
    _, vectors = torch.linalg.eigh(gram)
    projected = (points @ vectors[:, :, -1:])[..., 0].unflatten(1, features.shape[-2:])
    return stretch(foreground_sign(projected))


def foreground_sign(maps: Tensor) -> Tensor:
    """Flip the maps ``(B, h, w)`` whose mean along the image border exceeds the mean inside."""
    border = torch.ones_like(maps, dtype=torch.bool)
    border[:, 1:-1, 1:-1] = False
    at_border = (maps * border).sum(dim=(1, 2)) / border.sum(dim=(1, 2))
    inside = (~border).sum(dim=(1, 2)).clamp_min(1)
    within = (maps * ~border).sum(dim=(1, 2)) / inside
    return torch.where((at_border > within)[:, None, None], -maps, maps)


class SaliencyEstimator:
    """The saliency of every batch by one cue."""

    def __init__(self, cue: SaliencyCue) -> None:
        """Estimate with ``cue``, which is not ``auto``."""
        self.cue = cue

    def __call__(self, output: BackboneOutput, features: Tensor) -> Tensor | None:
        """Float32 ``(B, h, w)`` in [0, 1], or None for the cue ``none``.

        Args:
            output: What the backbone gave; its CLS attention is read for that cue only.
            features: The main facet ``(B, C, h, w)``, float32.
        """
        if self.cue == "cls_attention":
            return output.saliency
        if self.cue == "first_pc":
            return first_component_saliency(features)
        return None


def pick_cue(cue: SaliencyCue, backbone: Backbone) -> SaliencyCue:
    """``auto`` is the CLS attention for DINO and the first component for every other backbone.

    Raises:
        ConfigError: CLS attention of a backbone without a CLS token.
    """
    if cue == "auto":
        return "cls_attention" if backbone.name.startswith("dino_") else "first_pc"
    if cue == "cls_attention" and not backbone.has_cls:
        raise ConfigError(f"saliency 'cls_attention': backbone '{backbone.name}' has no CLS token; use first_pc")
    return cue
