"""The backbones known by name: architecture, normalization, reference conventions and file layout, in one table.

Sources: DINO (Caron et al. 2021), DINOv2 (Oquab et al. 2023; registers: Darcet et al. 2023), DINOv3 (Siméoni et
al. 2025), iBOT (Zhou et al. 2021), MoCo v3 (Chen et al. 2021), MAE (He et al. 2021), AugReg supervised ViTs
(Steiner et al. 2021).

SimMIM is not supported: its ViT-B uses one relative-position-bias table for a 14 x 14 grid, shared by all blocks,
instead of a position embedding. timm has neither that model nor its weights, and no reference says how to
transfer the table to another grid, which every video frame and every stride needs.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import timm

from pipeline.core.errors import ConfigError

Layout = Literal["vit", "dinov2", "dinov2_reg", "dinov3", "mocov3"]
PositionConvention = Literal["dino", "timm", "sinder"]

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
HALF: Final = (0.5, 0.5, 0.5)

_SIMMIM_REASON: Final = (
    "SimMIM's ViT has a relative position bias for a 14 x 14 grid instead of a position embedding; timm has no "
    "such model, and there is no reference for other grids"
)


@dataclass(frozen=True, slots=True)
class BackboneEntry:
    """One backbone.

    Attributes:
        name: The name used in configs.
        timm_name: timm's architecture.
        tag: timm's tag of the pretrained weights, or empty where its hub has none.
        layout: How the official checkpoint names its tensors.
        mean: Per-channel mean that normalizes the input, for pixels in [0, 1].
        std: Per-channel standard deviation.
        position: How the reference resizes the position embedding (see ``stages.extract.backbone.position``).
        saliency_heads: Heads of the last layer whose CLS attention is averaged; None takes all.
        bundled: File in ``stages/extract/assets``, or empty.
        sha256: Hash of the bundled file.
        overrides: Arguments for timm's constructor that differ from its own definition.
    """

    name: str
    timm_name: str
    tag: str = ""
    layout: Layout = "vit"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    position: PositionConvention = "dino"
    saliency_heads: tuple[int, ...] | None = None
    bundled: str = ""
    sha256: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)


def _entries() -> tuple[BackboneEntry, ...]:
    dino = (
        BackboneEntry("dino_vits16", "vit_small_patch16_224", "dino"),
        # Amir et al. 2021 average these four of the six heads.
        BackboneEntry("dino_vits8", "vit_small_patch8_224", "dino", saliency_heads=(0, 2, 4, 5)),
        BackboneEntry("dino_vitb16", "vit_base_patch16_224", "dino"),
        BackboneEntry("dino_vitb8", "vit_base_patch8_224", "dino"),
    )
    sizes = {"s": "small", "b": "base", "l": "large", "g": "giant"}
    bundled = {
        "s": (
            "dinov2_vits14.fp16.safetensors",
            "31537d45f95916853f77970dfd859aa795bc074bc5b0dc98d5777baceb942a38",
        )
    }
    dinov2 = tuple(
        BackboneEntry(
            f"dinov2_vit{s}14",
            f"vit_{long}_patch14_dinov2",
            "lvd142m",
            layout="dinov2",
            bundled=bundled.get(s, ("", ""))[0],
            sha256=bundled.get(s, ("", ""))[1],
        )
        for s, long in sizes.items()
    )
    registers = tuple(
        BackboneEntry(
            f"dinov2_vit{s}14_reg",
            f"vit_{long}_patch14_reg4_dinov2",
            "lvd142m",
            layout="dinov2_reg",
            position="timm",
        )
        for s, long in sizes.items()
    )
    # The "qkvb" definitions keep the query and value biases of the official files.
    dinov3 = tuple(
        BackboneEntry(f"dinov3_{short}", f"vit_{long}_patch16_dinov3_qkvb", "lvd1689m", layout="dinov3")
        for short, long in (
            ("vits16", "small"),
            ("vits16plus", "small_plus"),
            ("vitb16", "base"),
            ("vitl16", "large"),
        )
    )
    ibot = tuple(
        BackboneEntry(f"ibot_vit{s}16", f"vit_{long}_patch16_224")
        for s, long in (("s", "small"), ("b", "base"), ("l", "large"))
    )
    moco = (
        # MoCo v3's ViT-S has 12 heads of 32 dimensions, unlike every other ViT-S here.
        BackboneEntry("mocov3_vits16", "vit_small_patch16_224", layout="mocov3", overrides={"num_heads": 12}),
        BackboneEntry("mocov3_vitb16", "vit_base_patch16_224", layout="mocov3"),
    )
    mae = (
        BackboneEntry("mae_vitb16", "vit_base_patch16_224", "mae"),
        BackboneEntry("mae_vitl16", "vit_large_patch16_224", "mae"),
        BackboneEntry("mae_vith14", "vit_huge_patch14_224", "mae"),
    )
    supervised = tuple(
        BackboneEntry(f"supervised_{short}", timm_name, tag, mean=HALF, std=HALF)
        for short, timm_name, tag in (
            ("vits16", "vit_small_patch16_224", "augreg_in21k_ft_in1k"),
            ("vitb16", "vit_base_patch16_224", "augreg_in21k_ft_in1k"),
            ("vitb8", "vit_base_patch8_224", "augreg_in21k_ft_in1k"),
            ("vitl16", "vit_large_patch16_224", "augreg_in21k_ft_in1k"),
        )
    )
    return (*dino, *dinov2, *registers, *dinov3, *ibot, *moco, *mae, *supervised)


BACKBONES: Final[dict[str, BackboneEntry]] = {entry.name: entry for entry in _entries()}
"""The table, by name."""


def find_entry(name: str) -> BackboneEntry:
    """The table's entry of a backbone, or one made from timm's own config for any other timm model.

    Raises:
        ConfigError: The name is neither in the table nor in timm; the nearest names are suggested.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    if name.startswith("simmim"):
        raise ConfigError(f"backbone '{name}' is not supported: {_SIMMIM_REASON}")
    timm_name, _, tag = name.partition(".")
    if not timm.is_model(timm_name):
        known = [*BACKBONES, *timm.list_models("*vit*")]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"valid: {', '.join(BACKBONES)}, or a timm ViT"
        raise ConfigError(f"backbone '{name}' does not exist; {hint}")
    default = timm.get_pretrained_cfg(name)
    return BackboneEntry(
        name=name,
        timm_name=timm_name,
        tag=tag or (str(default.tag) if default is not None and default.tag else ""),
        mean=tuple(default.mean) if default is not None and default.mean else HALF,
        std=tuple(default.std) if default is not None and default.std else HALF,
        position="timm",
    )
