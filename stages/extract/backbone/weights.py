"""Where weights come from: bundled, a local file in timm's or an official layout, or timm's hub.

Files are read with safetensors, or with torch's ``weights_only`` unpickler. Wrappers (a training checkpoint's
``teacher``, ``state_dict`` or ``model`` part, ``module.`` and ``backbone.`` prefixes) are removed; the result is a
state dict in timm's names, and it must hold every tensor of the model with its shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.core.errors import WeightsError
from pipeline.core.files import sha256_of
from stages.extract.backbone.registry import BackboneEntry, Layout

ASSETS: Final = Path(__file__).parent.parent / "assets"

_WRAPPERS: Final = ("teacher", "state_dict", "model", "model_state_dict", "student")
_PREFIXES: Final = (
    "module.base_encoder.",
    "base_encoder.",
    "module.",
    "backbone.",
    "teacher.",
    "_orig_mod.",
    "model.",
)
# Parts of a training checkpoint that a frozen backbone does not have.
_TRAINING_ONLY: Final = (
    "head.",
    "head_dist.",
    "fc.",
    "fc_norm.",
    "decoder",
    "mask_token",
    "masked_embed",
    "momentum_encoder.",
    "module.momentum_encoder.",
    "module.predictor.",
    "predictor.",
    "projector",
    "dino_head.",
    "ibot_head.",
    "local_cls_norm.",
    "rope_embed.",
)
_DINOV3_NAMES: Final = (
    ("ls1.gamma", "gamma_1"),
    ("ls2.gamma", "gamma_2"),
    ("mlp.w1.", "mlp.fc1_g."),
    ("mlp.w2.", "mlp.fc1_x."),
    ("mlp.w3.", "mlp.fc2."),
    ("storage_tokens", "reg_token"),
)
_MOST_WRAPPERS: Final = 8
_SHOWN: Final = 4


def bundled_path(entry: BackboneEntry) -> Path | None:
    """The bundled weights of a backbone, or None.

    Raises:
        WeightsError: The file is missing from the installation or was changed.
    """
    if not entry.bundled:
        return None
    path = ASSETS / entry.bundled
    if not path.is_file():
        raise WeightsError(f"{path}: the bundled weights are missing; reinstall liftstream")
    found = sha256_of(path)
    if found != entry.sha256:
        raise WeightsError(
            f"{path}: sha256 is {found[:16]}..., expected {entry.sha256[:16]}...; the bundled weights were "
            "changed, reinstall liftstream"
        )
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors or torch file, unwrapped, in the names the file uses.

    Raises:
        WeightsError: The file is missing, cannot be read safely or holds no tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; give a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign or damaged file makes torch raise nearly anything
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise WeightsError(f"{path}: cannot read the weights: {reason}") from error
    tensors = _unwrap(content)
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors; expected a state dict or a training checkpoint")
    return tensors


def _unwrap(content: Any) -> dict[str, Tensor]:
    """The tensors inside the wrappings of a training checkpoint; a file may not be its own wrapping."""
    for _ in range(_MOST_WRAPPERS):
        if not isinstance(content, Mapping):
            return {}
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        content = inner
    return {}


def read_timm_weights(path: Path, layout: Layout) -> dict[str, Tensor]:
    """A file's tensors in timm's names.

    Raises:
        WeightsError: The file cannot be read, or is not in the layout.
    """
    tensors = read_weights(path)
    try:
        return to_timm_names(tensors, layout)
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{path}: is not in the layout '{layout}' ({error}; {listed(tensors)})") from error


def to_timm_names(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Rename a checkpoint's tensors to timm's, and drop those that only training uses.

    Args:
        tensors: As :func:`read_weights` returns them; files in timm's own layout pass unchanged.
        layout: The official layout of the backbone.
    """
    encoder_only = any(".base_encoder." in f".{key}" for key in tensors)
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if encoder_only and ".base_encoder." not in f".{key}":
            continue
        name = _strip(key)
        if not name.startswith(_TRAINING_ONLY) and not name.endswith(".bias_mask"):
            renamed[name] = value
    if layout in ("dinov2", "dinov2_reg"):
        renamed = _from_dinov2(renamed)
    elif layout == "dinov3":
        renamed = _from_dinov3(renamed)
    return renamed


def _strip(name: str) -> str:
    while (prefix := next((p for p in _PREFIXES if name.startswith(p)), None)) is not None:
        name = name[len(prefix) :]
    return name


def _from_dinov2(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """SwiGLU and register names; timm adds the CLS token's position to the token of register models."""
    renamed = {}
    for key, value in tensors.items():
        # Training checkpoints group blocks into chunks: blocks.<chunk>.<block>.
        parts = key.split(".")
        if parts[0] == "blocks" and len(parts) > 2 and parts[2].isdigit():
            key = ".".join(["blocks", *parts[2:]])
        renamed[key.replace("mlp.w12.", "mlp.fc1.").replace("mlp.w3.", "mlp.fc2.")] = value
    if "register_tokens" in renamed:
        renamed["reg_token"] = renamed.pop("register_tokens")
        position = renamed["pos_embed"]
        renamed["cls_token"] = renamed["cls_token"] + position[:, :1]
        renamed["pos_embed"] = position[:, 1:]
    return renamed


def _from_dinov3(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Registers are storage tokens; the fused bias is split, its key third is masked to zero in the original."""
    renamed = {}
    for key, value in tensors.items():
        if key.endswith("attn.qkv.bias"):
            query, _, bias = value.chunk(3)
            stem = key.removesuffix("qkv.bias")
            renamed[stem + "q_bias"], renamed[stem + "v_bias"] = query, bias
            continue
        name = key
        for official, own in _DINOV3_NAMES:
            name = name.replace(official, own)
        renamed[name] = value
    return renamed


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Copy ``tensors`` into ``model``; every parameter must be given, with its shape, and nothing may be left.

    A position embedding for another square grid is accepted: the model takes it over as its own.

    Raises:
        WeightsError: Lists what is missing, left over or of another shape.
    """
    _adopt_position_embedding(model, tensors)
    own = model.state_dict()
    problems = differences(own, tensors)
    if problems:
        raise WeightsError(
            f"{origin}: does not fit {type(model).__name__} with {len(own)} tensors: {problems}; "
            "check that 'backbone' names the model the file was made for"
        )
    model.load_state_dict({name: tensors[name].to(torch.float32) for name in own})


def differences(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """How a file's tensors differ from a model's in name, shape and kind of number; empty where they fit."""
    shapes = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    unusable = [name for name in own if name in tensors and not _is_plain(tensors[name])]
    found = {
        "of another shape": shapes,
        "missing": [name for name in own if name not in tensors],
        "not in the model": [name for name in tensors if name not in own],
        "that are not plain real numbers": unusable,
    }
    return "; ".join(f"{len(names)} {what} ({listed(names)})" for what, names in found.items() if names)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense, real and has values; a torch file may also hold sparse, quantized and others."""
    usual = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_complex()
    return usual and tensor.device.type == "cpu"


def _adopt_position_embedding(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own, given = getattr(model, "pos_embed", None), tensors.get("pos_embed")
    if not isinstance(own, nn.Parameter) or given is None or own.shape == given.shape or given.ndim != 3:
        return
    prefix = own.shape[1] - math.isqrt(own.shape[1]) ** 2
    patches = given.shape[1] - prefix
    if given.shape[2] == own.shape[2] and patches > 0 and math.isqrt(patches) ** 2 == patches:
        model.pos_embed = nn.Parameter(torch.zeros_like(given, dtype=torch.float32))


def listed(names: Iterable[str]) -> str:
    """The first few of some names, and how many more there are.

    >>> listed(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d, and 2 more'
    """
    names = list(names)
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
