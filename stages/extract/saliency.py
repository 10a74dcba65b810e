"""Foreground cues from dense features, each a map in [0, 1] an image.

* CLS attention (Amir et al. 2021, section 3.3) comes from the backbone itself. It is good for DINO and poor for
  DINOv2, whose attention sinks into a few background tokens.
* First principal component (Oquab et al. 2023, figure 1): the leading component of the centered descriptors
  separates the object from its surroundings.
* Normalized cut (Shi and Malik 2000; on ViT features TokenCut, Wang et al. 2022): the eigenvectors after the first
  of the graph whose weights are cosine similarities.

``docs/features.md`` has the measured foreground IoU of all three.

Differs from TokenCut: weights are the fifth powers of the positive cosines instead of a threshold with a floor;
the keys of the layer before the last one instead of the last one's; of the second to fourth eigenvector the one
that leaves the image border freest, because the second is often a cut between two kinds of background; and where
the grid has more than 1024 cells, the graph is built on cells averaged together, which bounds its cost.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.errors import ConfigError
from pipeline.core.normalized_cut import cut_eigenvectors, leading_eigenvectors
from stages.extract.backbone.backbone import Backbone, BackboneOutput, stretch
from stages.extract.backbone.facets import FacetSpec

SaliencyCue = Literal["auto", "cls_attention", "first_pc", "ncut", "none"]

# Keeps the graph connected, and a cell without any direction in it.
_LEAST_COSINE: Final = 0.01
_MAX_CELLS: Final = 1024
_VECTORS: Final = 4
_STEPS: Final = 12
_COMPONENT_STEPS: Final = 40
_CANDIDATES: Final = 3


def first_component_saliency(features: Tensor) -> Tensor:
    """The leading principal component of each image's descriptors, as a map.

    Args:
        features: ``(B, C, h, w)``, floating point, not normalized.

    Returns:
        float32 ``(B, h, w)`` in [0, 1].
    """
    points = features.flatten(2).transpose(1, 2).float()
    points = points - points.mean(dim=1, keepdim=True)
    leading = _leading_direction(points.transpose(1, 2) @ points)
    projected = (points @ leading)[..., 0].reshape(features.shape[0], *features.shape[-2:])
    return background_at_border(projected)


def _leading_direction(covariances: Tensor) -> Tensor:
    """The eigenvector of the largest eigenvalue ``(B, C, 1)``; on a card by iteration, without a wait."""
    if covariances.is_cpu:
        _, vectors = torch.linalg.eigh(covariances)
        found: Tensor = vectors[:, :, -1:]
        return found
    return leading_eigenvectors(covariances, _VECTORS, _COMPONENT_STEPS)[:, :, :1]


def normalized_cut_saliency(features: Tensor) -> Tensor:
    """The foreground side of each image's normalized cut, as a map.

    Args:
        features: ``(B, C, h, w)``, floating point.

    Returns:
        float32 ``(B, h, w)`` in [0, 1].
    """
    size = (features.shape[-2], features.shape[-1])
    pool = 1
    while -(-size[0] // pool) * -(-size[1] // pool) > _MAX_CELLS:
        pool += 1
    coarse = F.avg_pool2d(features.float(), pool, ceil_mode=True) if pool > 1 else features
    vectors = _cut_eigenvectors(coarse.flatten(2).transpose(1, 2))[..., :_CANDIDATES]
    batch, _, count = vectors.shape
    maps = vectors.transpose(1, 2).reshape(batch * count, *coarse.shape[-2:])
    maps = background_at_border(maps)
    freedom = _border_share(maps) / ((maps > 0.5).float().mean(dim=(1, 2)) + 1e-3)
    best = freedom.reshape(batch, count).argmin(dim=1)
    chosen = maps.reshape(batch, count, *coarse.shape[-2:])[torch.arange(batch, device=maps.device), best]
    if pool == 1:
        return chosen
    return F.interpolate(chosen[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def _cut_eigenvectors(points: Tensor) -> Tensor:
    """Eigenvectors ``(B, N, k)`` of the cut between cells ``(B, N, C)``, from the second smallest on.

    Cosines are computed in the dtype of the cells, everything after them in float32.
    """
    unit = F.normalize(points.float(), dim=-1).to(points.dtype)
    cosines = (unit @ unit.transpose(1, 2)).float().clamp_min_(_LEAST_COSINE)
    squares = cosines.square()
    weights = squares.square_().mul_(cosines)  # the fifth power; pow() takes several times as long
    return cut_eigenvectors(weights, _VECTORS, _STEPS)


def background_at_border(maps: Tensor) -> Tensor:
    """Stretch maps ``(B, h, w)`` to [0, 1] and give them the sign that makes most of the border background.

    An eigenvector has no sign of its own.
    """
    stretched = stretch(maps)
    return torch.where((_border_share(stretched) > 0.5)[:, None, None], 1 - stretched, stretched)


def _border_share(maps: Tensor) -> Tensor:
    """Part of the cells along the image border with a value above one half, ``(B,)``."""
    border = torch.ones(maps.shape[-2:], dtype=torch.bool, device=maps.device)
    border[1:-1, 1:-1] = False
    return ((maps > 0.5) & border).sum(dim=(1, 2)) / border.sum()


class SaliencyEstimator:
    """The saliency of batch after batch by one cue.

    Attributes:
        spec: The facet the backbone has to give for it, or None.
    """

    def __init__(
        self, cue: SaliencyCue, facets: tuple[FacetSpec, ...], num_layers: int, *, final_cls: bool
    ) -> None:
        """Prepare a cue.

        Args:
            cue: Not ``auto``; see :func:`pick_cue`.
            facets: What is extracted anyway. The graph of the cut is built on the keys of the layer before the
                last of these, which are there for nothing.
            num_layers: Blocks of the backbone.
            final_cls: Whether the last layer runs for the CLS descriptor.
        """
        self.cue = cue
        last = num_layers - 1 if final_cls else max(spec.resolved(num_layers).layer for spec in facets)
        self.spec = FacetSpec("key", max(last - 1, 0)) if cue == "ncut" else None

    def __call__(self, output: BackboneOutput, features: Tensor) -> Tensor | None:
        """Float32 ``(B, h, w)`` in [0, 1], or None for the cue ``none``.

        Args:
            output: What the backbone gave.
            features: The main facet ``(B, C, h, w)``, float32.
        """
        if self.cue == "cls_attention":
            return output.saliency
        if self.cue == "first_pc":
            return first_component_saliency(features)
        if self.spec is not None:
            return normalized_cut_saliency(output.maps[str(self.spec)])
        return None


def pick_cue(cue: SaliencyCue, backbone: Backbone) -> SaliencyCue:
    """``auto`` is the CLS attention for DINO and iBOT, and the normalized cut for every other backbone.

    Raises:
        ConfigError: CLS attention of a backbone without a CLS token.
    """
    if cue == "auto":
        return "cls_attention" if backbone.name.startswith(("dino_", "ibot_")) else "ncut"
    if cue == "cls_attention" and not backbone.has_cls:
        raise ConfigError(f"saliency 'cls_attention': backbone '{backbone.name}' has no CLS token; use ncut")
    return cue
