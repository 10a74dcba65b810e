"""The map a pyramid is built on: the last map of a plain ViT, or of ViTDet's, and LiFT after it.

A plain backbone is any of ``stages.extract.backbone``. ViTDet's own ViT (Li et al. 2022, section 3) attends inside
windows in most blocks and has decomposed relative positions in all of them; timm has its blocks under the name of
SAM, which took them over, with the same names and arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

from pipeline.core.errors import WeightsError
from pipeline.detect.settings import DetectorSettings, WindowedSettings
from stages.extract.backbone.backbone import Backbone, load_backbone
from stages.extract.backbone.facets import parse_facet
from stages.extract.backbone.registry import IMAGENET_MEAN, IMAGENET_STD
from stages.extract.lift.module import LoadedLift

WINDOWED_NAME = "vitdet"
"""Name of ViTDet's ViT in the header of a LiFT file."""


class PlainMaps(nn.Module):
    """Maps of one facet of a plain ViT.

    Attributes:
        backbone: Frozen unless a trainer switches gradients on.
        channels: Of the map.
        patch_px: Stride of the map in input pixels.
    """

    def __init__(self, backbone: Backbone, facet: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.spec = parse_facet(facet).resolved(backbone.num_layers)
        self.name = backbone.name
        self.facet = str(self.spec)
        self.channels = backbone.embed_dim
        self.patch_px = backbone.patch_px
        self.mean, self.std = backbone.mean, backbone.std
        self.weights_sha256 = backbone.weights_sha256

    def forward(self, images: Tensor) -> Tensor:
        """Normalized ``(B, 3, H, W)`` to ``(B, C, H / patch, W / patch)``."""
        return self.backbone(images, [self.spec]).maps[self.facet]  # type: ignore[no-any-return]


class WindowedMaps(nn.Module):
    """Maps of ViTDet's ViT: tokens of the last block, no final norm.

    Args:
        settings: Its architecture.
        canvas_hw: The input's size, for the sizes of the position embeddings.
    """

    def __init__(self, settings: WindowedSettings, canvas_hw: tuple[int, int]) -> None:
        super().__init__()
        self.vit: Any = VisionTransformerSAM(
            img_size=canvas_hw,
            patch_size=settings.patch_px,
            embed_dim=settings.embed_dim,
            depth=settings.depth,
            num_heads=settings.num_heads,
            mlp_ratio=settings.mlp_ratio,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=settings.window_cells,
            global_attn_indexes=settings.global_blocks,
            neck_chans=0,
            num_classes=0,
        )
        self.vit.neck = nn.Identity()
        self.vit.head = nn.Identity()
        self.name, self.facet = WINDOWED_NAME, f"token@{settings.depth - 1}"
        self.channels = settings.embed_dim
        self.patch_px = settings.patch_px
        self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        self.weights_sha256 = ""
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalized ``(B, 3, H, W)`` to ``(B, C, H / patch, W / patch)``."""
        tokens = self.vit.patch_embed(images)
        tokens = self.vit.blocks(tokens + self.vit.pos_embed)
        return tokens.permute(0, 3, 1, 2)  # type: ignore[no-any-return]


FeatureMaps = PlainMaps | WindowedMaps


def build_maps(
    settings: DetectorSettings,
    *,
    weights: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> FeatureMaps:
    """The backbone of a detector.

    Args:
        settings: The detector's architecture.
        weights: Of a plain backbone; see ``load_backbone``. ViTDet's ViT has them in the detector's file.
        overrides: Arguments for timm's constructor, for tests.

    Raises:
        ConfigError: An unknown backbone or facet.
        WeightsError: Weights that do not fit.
    """
    if settings.windowed is not None:
        return WindowedMaps(settings.windowed, settings.canvas_hw)
    return PlainMaps(load_backbone(settings.backbone, weights=weights, overrides=overrides), settings.facet)


def check_lift(lift: LoadedLift, maps: FeatureMaps) -> None:
    """Refuse a LiFT that was trained for other features.

    Raises:
        WeightsError: Lists every difference.
    """
    if isinstance(maps, PlainMaps):
        backbone = maps.backbone
        lift.require_match(
            backbone=backbone.name,
            facet=maps.spec,
            num_layers=backbone.num_layers,
            patch_px=backbone.patch_px,
            weights_sha256=backbone.weights_sha256,
        )
    elif (lift.module.channels, lift.metadata.patch_px) != (maps.channels, maps.patch_px):
        raise WeightsError(
            f"{lift.path}: this LiFT has {lift.module.channels} channels for patches of "
            f"{lift.metadata.patch_px} px; the detector's map has {maps.channels} and {maps.patch_px} px"
        )


def resize_positions(embedding: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """A pretrained position embedding for a grid, as Detectron2's ``get_abs_pos`` makes it.

    Args:
        embedding: ``(1, M * M + 1, C)``; the first entry belongs to a CLS token and is dropped.
        grid_hw: Rows and columns.

    Returns:
        ``(1, *grid_hw, C)``.
    """
    patches = embedding[:, 1:].float()
    side = round(patches.shape[1] ** 0.5)
    square = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if (side, side) != tuple(grid_hw):
        square = F.interpolate(square, size=grid_hw, mode="bicubic", align_corners=False)
    return square.permute(0, 2, 3, 1).contiguous()


def lifted_stride(maps: FeatureMaps, lift: LoadedLift | None) -> float:
    """Stride of the map that the pyramid is built on, in input pixels."""
    return maps.patch_px / (1 if lift is None else 2)
