"""Detectors on disk: one safetensors file with the settings in its header.

A file holds the pyramid, the heads and LiFT. The backbone is in it only where training changed it; else the header
names it with the hash of its weights, and it is loaded as everywhere else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from pipeline.core.errors import WeightsError
from pipeline.core.files import write_bytes_whole
from pipeline.detect.detectron2 import official_settings, read_official, to_own_names
from pipeline.detect.feature_maps import build_maps, resize_positions
from pipeline.detect.model import Detector
from pipeline.detect.settings import DetectorSettings
from stages.extract.backbone.device import pick_device
from stages.extract.backbone.weights import differences
from stages.extract.lift.module import LiftMetadata, LoadedLift, load_lift
from stages.extract.lift.network import Lift

_KIND: Final = "detector"
_BACKBONE, _LIFT = "maps.", "lift_module."


@dataclass(frozen=True, slots=True)
class LoadedDetector:
    """A detector ready to use.

    Attributes:
        detector: In eval mode.
        training: How it was trained; JSON values.
        path: Its file.
    """

    detector: Detector
    training: dict[str, Any]
    path: Path


def save_detector(detector: Detector, path: Path, *, training: Mapping[str, Any], with_backbone: bool) -> None:
    """Write a detector, complete or not at all.

    Args:
        detector: The detector.
        path: A ``.safetensors`` file.
        training: How it was trained, for the header.
        with_backbone: Whether the backbone was changed and belongs into the file.
    """
    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in detector.state_dict().items()
        if with_backbone or not name.startswith(_BACKBONE)
    }
    lift = detector.lift
    header = {
        "format": "pt",
        "liftstream": _KIND,
        "settings": detector.settings.model_dump_json(),
        "backbone_sha256": detector.maps.weights_sha256,
        "lift": "" if lift is None else json.dumps(lift.metadata.to_header(), sort_keys=True),
        "training": json.dumps(dict(training), sort_keys=True),
    }
    write_bytes_whole(path, save(tensors, metadata=header))


def load_any_detector(
    path: Path, *, lift: Path | None = None, backbone_weights: str | None = None, device: str = "auto"
) -> LoadedDetector:
    """Load a file written by train-detect, or a Mask R-CNN of Detectron2's ViTDet project.

    Args:
        path: ``.safetensors`` of train-detect; or ``.pth``, ``.pkl`` or ``.safetensors`` with Detectron2's names.
        lift: A LiFT to put between the backbone and the pyramid of a detector that was trained without one.
        backbone_weights: Weights of a plain backbone that is not bundled.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        WeightsError: The file cannot be read, is not a detector, or does not fit the backbone or the LiFT.
    """
    header = _header(path)
    if header.get("liftstream") == _KIND:
        loaded = _load_own(path, header, lift, backbone_weights)
    elif "liftstream" in header:
        raise WeightsError(f"{path}: holds a {header['liftstream']}, not a detector")
    else:
        loaded = _load_official(path, lift)
    loaded.detector.eval().requires_grad_(False)
    loaded.detector.to(pick_device(device))
    return loaded


def _header(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; give a detector written by train-detect")
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: cannot read the weights: {error}") from error


def _load_own(path: Path, header: Mapping[str, str], lift: Path | None, weights: str | None) -> LoadedDetector:
    try:
        settings = DetectorSettings.model_validate_json(header["settings"])
        training = json.loads(header.get("training", "{}"))
        stored_lift = json.loads(header["lift"]) if header.get("lift") else None
    except (KeyError, ValueError, ValidationError) as error:
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(f"{path}: its header does not describe a detector ({reason})") from error
    tensors = load_file(path)
    maps = build_maps(settings, weights=weights)
    own_backbone = any(name.startswith(_BACKBONE) for name in tensors)
    expected = header.get("backbone_sha256", "")
    if not own_backbone and expected and maps.weights_sha256 and maps.weights_sha256 != expected:
        raise WeightsError(
            f"{path}: was trained on weights {expected[:12]}... of {settings.backbone}, these are "
            f"{maps.weights_sha256[:12]}...; give the right file with --weights"
        )
    if stored_lift is not None and lift is not None:
        raise WeightsError(f"{path}: holds a LiFT already; leave --lift out")
    loaded_lift = None if lift is None else load_lift(lift, patch_px=maps.patch_px)
    if stored_lift is not None:
        metadata = LiftMetadata.from_header(stored_lift, str(path))
        loaded_lift = LoadedLift(_empty_lift(tensors, maps.channels, metadata.patch_px), metadata, path)
    detector = Detector(settings, maps, loaded_lift)
    if lift is not None:
        tensors |= {f"{_LIFT}{n}": v for n, v in loaded_lift.module.state_dict().items()} if loaded_lift else {}
    _fill(detector, tensors, path, skip=() if own_backbone else (_BACKBONE,))
    return LoadedDetector(detector, training, path)


def _empty_lift(tensors: Mapping[str, Tensor], channels: int, patch_px: int) -> Lift:
    names = [name.removeprefix(_LIFT) for name in tensors if name.startswith(_LIFT)]
    return Lift(channels, patch_px=patch_px, extra_blocks=Lift.count_extra_blocks(names)).requires_grad_(False)


def _fill(detector: Detector, tensors: Mapping[str, Tensor], path: Path, *, skip: tuple[str, ...]) -> None:
    own = {name: value for name, value in detector.state_dict().items() if not name.startswith(skip or ("\0",))}
    problems = differences(own, tensors)
    if problems:
        raise WeightsError(f"{path}: does not fit a detector with {len(own)} tensors: {problems}")
    detector.load_state_dict(
        {n: v if v.dtype == torch.int64 else v.float() for n, v in tensors.items()}, strict=False
    )


def _load_official(path: Path, lift: Path | None) -> LoadedDetector:
    official = read_official(path)
    settings = official_settings(official, str(path))
    maps = build_maps(settings)
    loaded_lift = None if lift is None else load_lift(lift, patch_px=maps.patch_px)
    detector = Detector(settings, maps, loaded_lift)
    tensors = to_own_names(official, settings, str(path))
    grid_hw = (settings.canvas_hw[0] // maps.patch_px, settings.canvas_hw[1] // maps.patch_px)
    tensors["maps.vit.pos_embed"] = resize_positions(tensors["maps.vit.pos_embed"], grid_hw)
    if loaded_lift is not None:
        tensors |= {f"{_LIFT}{n}": v for n, v in loaded_lift.module.state_dict().items()}
    _fill(detector, tensors, path, skip=())
    return LoadedDetector(detector, {"converted_from": path.name}, path)
