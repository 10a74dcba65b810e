"""What a detector is made of: everything that its weights file needs to be built again."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from pipeline.core.config import StrictModel

OFFICIAL_SCALES = (4.0, 2.0, 1.0, 0.5)
"""Pyramid of ViTDet: strides of 4, 8, 16 and 32 px from a map with a stride of 16 px."""

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class WindowedSettings(StrictModel):
    """ViTDet's own ViT: window attention in most blocks, relative positions in all of them.

    Attributes:
        patch_px: Side of a patch.
        embed_dim: Channels.
        depth: Blocks.
        num_heads: Attention heads per block.
        window_cells: Side of an attention window in cells.
        global_blocks: Blocks that attend to the whole map, counted from 0.
        mlp_ratio: Hidden channels of the MLP by ``embed_dim``.
    """

    patch_px: PositiveInt = 16
    embed_dim: PositiveInt = 768
    depth: PositiveInt = 12
    num_heads: PositiveInt = 12
    window_cells: PositiveInt = 14
    global_blocks: tuple[NonNegativeInt, ...] = (2, 5, 8, 11)
    mlp_ratio: PositiveFloat = 4.0


class DetectorSettings(StrictModel):
    """Architecture of a detector.

    Attributes:
        categories: Names of the classes; a predicted label is a position in this list.
        category_ids: Their numbers in the COCO file the detector was trained on, or 1, 2, ...
        backbone: Name of the frozen backbone; ``windowed`` replaces it where it is given.
        facet: What is read from it; unused with ``windowed``.
        windowed: ViTDet's ViT instead of a plain one.
        canvas_hw: Height and width of the model's input in pixels. An image is scaled to fit into it with its
            proportions kept, and the rest at the right and the bottom is filled with the mean color.
        scales: Cells per axis of each pyramid level by those of the map that the pyramid is built on, finest
            first; powers of two.
        channels: Channels of every level.
        anchor_cells: Side of a level's square anchor in cells of that level; ViTDet has 8.
        rpn_convs: Convolutions of the region proposal head.
        box_convs: Convolutions of the box head.
        box_hidden: Channels of the box head's hidden layer.
        mask_convs: Convolutions of the mask head.
    """

    categories: tuple[str, ...]
    category_ids: tuple[int, ...]
    backbone: str = "dinov2_vits14"
    facet: str = "token@-1:norm"
    windowed: WindowedSettings | None = None
    canvas_hw: tuple[PositiveInt, PositiveInt] = (308, 560)
    scales: tuple[PositiveFloat, ...] = (2.0, 1.0, 0.5)
    channels: PositiveInt = 128
    anchor_cells: PositiveFloat = 4.0
    rpn_convs: PositiveInt = 1
    box_convs: NonNegativeInt = 1
    box_hidden: PositiveInt = 512
    mask_convs: PositiveInt = 2

    @model_validator(mode="after")
    def _check(self) -> DetectorSettings:
        if not self.categories or len(self.categories) != len(self.category_ids):
            raise ValueError(
                f"{len(self.categories)} categories and {len(self.category_ids)} category_ids; give one id each"
            )
        if len(set(self.category_ids)) != len(self.category_ids):
            raise ValueError("category_ids must all be different")
        if not self.scales or any(math.log2(scale) % 1 for scale in self.scales):
            raise ValueError(f"scales must be powers of two, got {list(self.scales)}")
        if list(self.scales) != [self.scales[0] / 2**place for place in range(len(self.scales))]:
            raise ValueError(f"each scale must be half of the one before it, got {list(self.scales)}")
        return self
