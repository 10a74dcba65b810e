"""timm's ViT modules, created and filled with weights."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

import timm
import torch
from torch import nn

from pipeline.core.errors import ConfigError, WeightsError
from stages.extract.backbone import weights as weight_files
from stages.extract.backbone.registry import BackboneEntry

RANDOM: Final = "random"
"""As ``weights``: random values from a fixed seed, to try the pipeline without any file."""


def build_vit(
    entry: BackboneEntry, source: str | None, overrides: dict[str, Any]
) -> tuple[nn.Module, Path | None]:
    """Timm's module of a backbone with its weights, and the file they come from, if any.

    Args:
        entry: The backbone.
        source: None for the bundled file or else timm's hub, a path, or ``"random"``.
        overrides: Arguments for timm's constructor.

    Raises:
        ConfigError: The model is not a plain ViT.
        WeightsError: Weights that are missing, changed or do not fit, or a hub that cannot be reached.
    """
    path = weight_files.bundled_path(entry) if source is None else None
    if source not in (None, RANDOM):
        path = Path(str(source)).expanduser()
    if source is None and path is None:
        return _create(entry, pretrained=True, overrides=overrides), None
    vit = _create(entry, pretrained=False, overrides=overrides)
    if path is not None:
        weight_files.load_into(vit, weight_files.read_timm_weights(path, entry.layout), str(path))
    return vit, path


def _create(entry: BackboneEntry, *, pretrained: bool, overrides: dict[str, Any]) -> nn.Module:
    if pretrained and not entry.tag:
        raise WeightsError(
            f"backbone '{entry.name}' has no weights on timm's hub; give its official checkpoint as 'weights'"
        )
    full_name = f"{entry.timm_name}.{entry.tag}" if pretrained else entry.timm_name
    # Dynamic sizes keep timm from caching rotary embeddings for one grid.
    arguments = {"num_classes": 0, "dynamic_img_size": True, **entry.overrides, **overrides}
    logging.getLogger("timm").setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            vit: Any = timm.create_model(full_name, pretrained=pretrained, **arguments)
    except (RuntimeError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(
            f"backbone '{entry.name}': cannot get {full_name} from timm's hub ({reason}); "
            "check the network or give a local file as 'weights'"
        ) from error
    except TypeError as error:
        raise _not_a_vit(entry) from error
    if not _is_vit(vit):
        raise _not_a_vit(entry)
    vit.fc_norm = nn.Identity()
    found: nn.Module = vit
    return found


def _not_a_vit(entry: BackboneEntry) -> ConfigError:
    return ConfigError(
        f"backbone '{entry.name}' is not a plain ViT; valid: the table's names, or timm models of the classes "
        "VisionTransformer and Eva"
    )


def _is_vit(model: Any) -> bool:
    plain = type(model).__name__ in ("VisionTransformer", "Eva")
    return plain and hasattr(model, "blocks") and getattr(model.patch_embed, "proj", None) is not None
