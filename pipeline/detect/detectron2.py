"""Detectron2's ViTDet checkpoints: Mask R-CNN on a windowed ViT, read without running any code in them.

Checkpoints: https://github.com/facebookresearch/detectron2/tree/main/projects/ViTDet (Mask R-CNN, ViT-B, L and H).
They are pickles of numpy arrays. A pickle can name any function to be called, so they are read by an unpickler
that knows the few names that build an array, and refuses every other one. ``.pth`` files are read with torch's
``weights_only`` unpickler, ``.safetensors`` as usual.

What is read: everything that Mask R-CNN with class-specific boxes has. The architecture follows from the shapes:
sizes of windows and of the input from the relative positions, heads from their width. Cascade heads, backbones
with residual blocks, without relative positions, and Swin or MViT are refused.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from pipeline.core.errors import WeightsError
from pipeline.detect.coco_names import COCO_CATEGORIES
from pipeline.detect.settings import OFFICIAL_SCALES, DetectorSettings, WindowedSettings
from stages.extract.backbone.weights import listed, read_weights

_ALLOWED: Final = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # how pickles of Python 2's protocol store bytes
}
_UNUSED: Final = ("pixel_mean", "pixel_std", "proposal_generator.anchor_generator.")
_ANCHOR_CELLS: Final = 8.0


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numbers, text, containers and numpy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        """The few functions that build an array.

        Raises:
            UnpicklingError: Any other name.
        """
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, and only numpy arrays are read")
        return super().find_class(module, name)


def read_official(path: Path) -> dict[str, Tensor]:
    """The tensors of a Detectron2 checkpoint by their names there.

    Raises:
        WeightsError: It is missing, cannot be read safely, or holds no tensors.
    """
    if path.suffix != ".pkl":
        return read_weights(path)
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle makes the unpickler raise nearly anything
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise WeightsError(f"{path}: cannot read the weights: {reason}") from error
    content = content.get("model", content) if isinstance(content, Mapping) else {}
    tensors = {
        str(name): torch.from_numpy(value)
        for name, value in content.items()
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiu"
    }
    if not tensors:
        raise WeightsError(f"{path}: holds no arrays; expected a Detectron2 checkpoint")
    return tensors


def official_settings(tensors: Mapping[str, Tensor], origin: str) -> DetectorSettings:
    """The architecture that a checkpoint's names and shapes describe.

    Raises:
        WeightsError: It is not a Mask R-CNN on ViTDet's ViT.
    """
    _refuse_other_models(tensors, origin)
    try:
        classes = tensors["roi_heads.box_predictor.cls_score.weight"].shape[0] - 1
        windowed, canvas = _windowed(tensors)
        names = (
            COCO_CATEGORIES
            if classes == len(COCO_CATEGORIES)
            else {n + 1: f"class {n + 1}" for n in range(classes)}
        )
        return DetectorSettings(
            categories=tuple(names.values()),
            category_ids=tuple(names),
            backbone="vitdet",
            windowed=windowed,
            canvas_hw=canvas,
            scales=OFFICIAL_SCALES,
            channels=tensors["backbone.simfp_2.4.weight"].shape[0],
            anchor_cells=_ANCHOR_CELLS,
            rpn_convs=max(1, _count(tensors, r"proposal_generator\.rpn_head\.conv\.conv(\d+)\.weight")),
            box_convs=_count(tensors, r"roi_heads\.box_head\.conv(\d+)\.weight"),
            box_hidden=tensors["roi_heads.box_head.fc1.weight"].shape[0],
            mask_convs=_count(tensors, r"roi_heads\.mask_head\.mask_fcn(\d+)\.weight"),
        )
    except (KeyError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(f"{origin}: is not a Mask R-CNN of Detectron2's ViTDet project ({reason})") from error


def _refuse_other_models(tensors: Mapping[str, Tensor], origin: str) -> None:
    reason = ""
    if any(name.startswith("roi_heads.box_head.0.") for name in tensors):
        reason = "Cascade Mask R-CNN is not supported, only Mask R-CNN"
    elif not any(name.startswith("backbone.simfp_") for name in tensors):
        reason = f"it has no simple feature pyramid ({listed(tensors)})"
    elif any(".residual." in name for name in tensors):
        reason = "backbones with residual blocks are not supported"
    elif not any(name.endswith("attn.rel_pos_h") for name in tensors):
        reason = "backbones without relative positions are not supported: heads and windows follow from those"
    if reason:
        raise WeightsError(f"{origin}: {reason}")


def _windowed(tensors: Mapping[str, Tensor]) -> tuple[WindowedSettings, tuple[int, int]]:
    """The backbone, and the input's size that its global blocks were made for."""
    depth = _count(tensors, r"backbone\.net\.blocks\.(\d+)\.norm1\.weight")
    positions = [tensors[f"backbone.net.blocks.{block}.attn.rel_pos_h"] for block in range(depth)]
    cells = [(len(position) + 1) // 2 for position in positions]
    patches = tensors["backbone.net.patch_embed.proj.weight"]
    dim, patch = patches.shape[0], patches.shape[-1]
    canvas = max(cells) * patch
    settings = WindowedSettings(
        patch_px=patch,
        embed_dim=dim,
        depth=depth,
        num_heads=dim // positions[0].shape[1],
        window_cells=min(cells),
        global_blocks=tuple(block for block, own in enumerate(cells) if own == max(cells)),
        mlp_ratio=tensors["backbone.net.blocks.0.mlp.fc1.weight"].shape[0] / dim,
    )
    return settings, (canvas, canvas)


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return len([name for name in tensors if re.fullmatch(pattern, name)])


def to_own_names(tensors: Mapping[str, Tensor], settings: DetectorSettings, origin: str) -> dict[str, Tensor]:
    """Rename a checkpoint's tensors to those of :class:`pipeline.detect.model.Detector`.

    The background is the last class there and the first one here, and has a box and a mask here that are unused.

    Raises:
        WeightsError: A name that is not known.
    """
    own: dict[str, Tensor] = {}
    unknown = []
    for name, value in tensors.items():
        if name.startswith(_UNUSED):
            continue
        new = _own_name(name, settings)
        if new is None:
            unknown.append(name)
        else:
            own[new] = _own_classes(new, value)
    if unknown:
        raise WeightsError(f"{origin}: has tensors that no part of a Mask R-CNN on ViTDet has: {listed(unknown)}")
    return own


def _own_name(name: str, settings: DetectorSettings) -> str | None:
    for pattern, replacement in _renames(settings):
        new, count = re.subn(rf"^{pattern}$", replacement, name)
        if count:
            return new
    return None


def _renames(settings: DetectorSettings) -> list[tuple[str, str]]:
    """Patterns of Detectron2's names and what takes their place; the first that fits counts."""
    last = settings.box_convs + 1  # after the convolutions and the flattening
    numbered: list[tuple[str, str]] = []
    for layer in range(max(settings.box_convs, settings.mask_convs)):
        numbered += [
            (rf"roi_heads\.box_head\.conv{layer + 1}\.(weight|bias)", rf"heads.box_head.{layer}.0.\1"),
            (rf"roi_heads\.box_head\.conv{layer + 1}\.norm\.(\w+)", rf"heads.box_head.{layer}.1.norm.\1"),
            (rf"roi_heads\.mask_head\.mask_fcn{layer + 1}\.(weight|bias)", rf"heads.mask_head.{layer}.0.\1"),
            (rf"roi_heads\.mask_head\.mask_fcn{layer + 1}\.norm\.(\w+)", rf"heads.mask_head.{layer}.1.norm.\1"),
        ]
    pyramid: list[tuple[str, str]] = []
    # Each level ends with a convolution of 1 x 1 and one of 3 x 3; before them lie those that change the size.
    for level, before in enumerate((4, 1, 0, 1)):
        stem = rf"backbone\.simfp_{level + 2}"
        for layer in (before, before + 1):
            target = f"pyramid.levels.{level}.{layer}"
            pyramid += [
                (rf"{stem}\.{layer}\.weight", f"{target}.conv.weight"),
                (rf"{stem}\.{layer}\.norm\.(\w+)", rf"{target}.norm.norm.\1"),
            ]
    return [
        (r"backbone\.net\.(.+)", r"maps.vit.\1"),
        *pyramid,
        (r"backbone\.simfp_2\.1\.(\w+)", r"pyramid.levels.0.1.norm.\1"),
        (r"backbone\.simfp_2\.([03])\.(\w+)", r"pyramid.levels.0.\1.\2"),
        (r"backbone\.simfp_3\.0\.(\w+)", r"pyramid.levels.1.0.\1"),
        (r"proposal_generator\.rpn_head\.conv\.conv(\d+)\.(\w+)", r"proposals.head.conv.\1.0.\2"),
        (r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"proposals.head.conv.0.0.\1"),
        (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", r"proposals.head.cls_logits.\1"),
        (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", r"proposals.head.bbox_pred.\1"),
        *numbered,
        (r"roi_heads\.box_head\.fc1\.(\w+)", rf"heads.box_head.{last}.\1"),
        (r"roi_heads\.box_predictor\.(cls_score|bbox_pred)\.(\w+)", r"heads.box_predictor.\1.\2"),
        (r"roi_heads\.mask_head\.deconv\.(\w+)", r"heads.mask_predictor.conv5_mask.\1"),
        (r"roi_heads\.mask_head\.predictor\.(\w+)", r"heads.mask_predictor.mask_fcn_logits.\1"),
    ]


def _own_classes(name: str, value: Tensor) -> Tensor:
    """A classifier's rows in the order of the classes here."""
    if ".cls_score." in name:
        return torch.cat([value[-1:], value[:-1]])
    if ".bbox_pred." in name and name.startswith("heads."):
        return torch.cat([torch.zeros_like(value[:4]), value])
    if ".mask_fcn_logits." in name:
        return torch.cat([torch.zeros_like(value[:1]), value])
    return value
