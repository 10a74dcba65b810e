"""A Mask R-CNN of Detectron2's ViTDet project, made small: its tensors by their official names, random values.

Names and order of the shapes are those of ``mask_rcnn_vitdet_b_100ep`` built by Detectron2's own code.
"""

from __future__ import annotations

import torch
from torch import Tensor

DIM, HEADS, DEPTH, PATCH, WINDOW, CELLS = 32, 2, 3, 16, 2, 4
GLOBAL = (1,)
CHANNELS, CLASSES, HIDDEN, PRETRAINED = 16, 3, 24, 3


def official_tensors(classes: int = CLASSES) -> dict[str, Tensor]:
    """The state dict for an input of ``CELLS * PATCH`` px per side."""
    shapes: dict[str, tuple[int, ...]] = {
        "backbone.net.pos_embed": (1, PRETRAINED**2 + 1, DIM),
        "backbone.net.patch_embed.proj.weight": (DIM, 3, PATCH, PATCH),
        "backbone.net.patch_embed.proj.bias": (DIM,),
    }
    for block in range(DEPTH):
        stem, side = f"backbone.net.blocks.{block}.", CELLS if block in GLOBAL else WINDOW
        for norm in ("norm1", "norm2"):
            shapes |= {f"{stem}{norm}.weight": (DIM,), f"{stem}{norm}.bias": (DIM,)}
        shapes |= {
            f"{stem}attn.rel_pos_h": (2 * side - 1, DIM // HEADS),
            f"{stem}attn.rel_pos_w": (2 * side - 1, DIM // HEADS),
            **_linear(f"{stem}attn.qkv", DIM, 3 * DIM),
            **_linear(f"{stem}attn.proj", DIM, DIM),
            **_linear(f"{stem}mlp.fc1", DIM, 4 * DIM),
            **_linear(f"{stem}mlp.fc2", 4 * DIM, DIM),
        }
    up = "backbone.simfp_2."
    shapes |= {f"{up}0.weight": (DIM, DIM // 2, 2, 2), f"{up}0.bias": (DIM // 2,)}
    shapes |= {f"{up}1.weight": (DIM // 2,), f"{up}1.bias": (DIM // 2,)}
    shapes |= {f"{up}3.weight": (DIM // 2, DIM // 4, 2, 2), f"{up}3.bias": (DIM // 4,)}
    shapes |= {"backbone.simfp_3.0.weight": (DIM, DIM // 2, 2, 2), "backbone.simfp_3.0.bias": (DIM // 2,)}
    for level, (place, width) in enumerate(((4, DIM // 4), (1, DIM // 2), (0, DIM), (1, DIM))):
        for layer, (inputs, kernel) in enumerate(((width, 1), (CHANNELS, 3))):
            shapes |= _normed(f"backbone.simfp_{level + 2}.{place + layer}", inputs, kernel)
    for conv in range(2):
        shapes |= _conv(f"proposal_generator.rpn_head.conv.conv{conv}", CHANNELS, CHANNELS, 3)
    shapes |= _conv("proposal_generator.rpn_head.objectness_logits", CHANNELS, 3, 1)
    shapes |= _conv("proposal_generator.rpn_head.anchor_deltas", CHANNELS, 12, 1)
    for conv in range(1, 5):
        shapes |= _normed(f"roi_heads.box_head.conv{conv}", CHANNELS, 3)
        shapes |= _normed(f"roi_heads.mask_head.mask_fcn{conv}", CHANNELS, 3)
    shapes |= _linear("roi_heads.box_head.fc1", 49 * CHANNELS, HIDDEN)
    shapes |= _linear("roi_heads.box_predictor.cls_score", HIDDEN, classes + 1)
    shapes |= _linear("roi_heads.box_predictor.bbox_pred", HIDDEN, 4 * classes)
    shapes |= {
        "roi_heads.mask_head.deconv.weight": (CHANNELS, CHANNELS, 2, 2),
        "roi_heads.mask_head.deconv.bias": (CHANNELS,),
    }
    shapes |= _conv("roi_heads.mask_head.predictor", CHANNELS, classes, 1)
    shapes |= {"pixel_mean": (3, 1, 1), "proposal_generator.anchor_generator.cell_anchors.0": (3, 4)}
    generator = torch.Generator().manual_seed(0)
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def _linear(stem: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{stem}.weight": (outputs, inputs), f"{stem}.bias": (outputs,)}


def _conv(stem: str, inputs: int, outputs: int, kernel: int) -> dict[str, tuple[int, ...]]:
    return {f"{stem}.weight": (outputs, inputs, kernel, kernel), f"{stem}.bias": (outputs,)}


def _normed(stem: str, inputs: int, kernel: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{stem}.weight": (CHANNELS, inputs, kernel, kernel),
        f"{stem}.norm.weight": (CHANNELS,),
        f"{stem}.norm.bias": (CHANNELS,),
    }
