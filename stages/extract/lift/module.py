"""LiFT files: the bundled ones, files of one's own and the published checkpoints, and what each was trained for.

A LiFT works for one backbone, layer and facet only: with another it is worse than none (Suri et al., LiFT, ECCV
2024, the cross-backbone ablation). So a file says in its safetensors header what it was trained for, and
:meth:`LoadedLift.require_match` refuses everything else with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pipeline.core.errors import ConfigError, WeightsError
from pipeline.core.files import write_bytes_whole
from stages.extract.backbone.device import store_matmul_weights
from stages.extract.backbone.facets import FacetSpec, parse_facet
from stages.extract.backbone.weights import ASSETS, differences, listed, read_weights
from stages.extract.lift.network import Lift

__all__ = ["Lift", "LiftMetadata", "LoadedLift", "find_bundled", "load_lift", "save_lift"]

PUBLISHED: Final[Mapping[str, tuple[str, int]]] = {
    "lift_dino_vits16": ("dino_vits16", 16),
    "lift_dino_vits8": ("dino_vits8", 8),
    "lift_dino_vitb16": ("dino_vitb16", 16),
    "lift_dino_vitb8": ("dino_vitb8", 8),
    "lift_vit_small_patch16": ("supervised_vits16", 16),
}
"""Backbone and patch of the authors' checkpoints by file name; all were trained on ``key@11``."""


@dataclass(frozen=True, slots=True)
class LiftMetadata:
    """What a LiFT was trained for.

    Attributes:
        backbone: Name of the backbone.
        facet: Its facet and layer, as ``facet@layer`` with the layer counted from 0.
        patch_px: Patch size.
        weights_sha256: Hash of the backbone's weights file; empty where unknown.
        training: Training settings and results; JSON-ready.
    """

    backbone: str
    facet: str
    patch_px: int
    weights_sha256: str = ""
    training: dict[str, Any] = field(default_factory=dict)

    def to_header(self) -> dict[str, str]:
        """As a safetensors header, whose values are strings."""
        return {
            "format": "pt",
            "liftstream": "lift",
            "backbone": self.backbone,
            "facet": self.facet,
            "patch_px": str(self.patch_px),
            "weights_sha256": self.weights_sha256,
            "training": json.dumps(self.training, sort_keys=True),
        }

    @classmethod
    def from_header(cls, header: Mapping[str, str], origin: str) -> LiftMetadata:
        """Read :meth:`to_header`'s values back.

        Raises:
            WeightsError: A value is missing or of another kind.
        """
        try:
            spec, patch_px = parse_facet(header["facet"]), int(header["patch_px"])
            training = json.loads(header.get("training", "{}"))
            if patch_px < 1:
                raise ValueError(f"patch_px is {patch_px}")
            return cls(header["backbone"], str(spec), patch_px, header.get("weights_sha256", ""), training)
        except (KeyError, ValueError, RecursionError, ConfigError) as error:
            raise WeightsError(
                f"{origin}: its header does not say what this LiFT was trained for ({error}); "
                "use a file written by train-lift or a published checkpoint"
            ) from error


@dataclass(frozen=True, slots=True)
class LoadedLift:
    """A LiFT ready to use, and what it was trained for.

    Attributes:
        module: In eval mode, frozen, float32.
        metadata: What it was trained for.
        path: Its file.
    """

    module: Lift
    metadata: LiftMetadata
    path: Path

    @property
    def num_parameters(self) -> int:
        """Parameters as trained, with the batch norms that :meth:`prepared` folds."""
        with torch.device("meta"):
            own = self.module
            trained = Lift(own.channels, patch_px=own.patch_px, extra_blocks=len(own.extra))
        return sum(parameter.numel() for parameter in trained.parameters())

    def prepared(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> LoadedLift:
        """The same for inference: batch norms folded into the convolutions, on ``device``.

        Args:
            device: The device.
            dtype: Precision in which the weights are stored; use the module under autocast to it.
        """
        module = self.module.fused().to(device)
        store_matmul_weights(module, dtype)
        if next(module.parameters()).device.type == "cpu":
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return replace(self, module=module)

    @torch.inference_mode()
    def upsample(
        self, images: Tensor, features: Tensor, iterations: int = 1, *, stride_px: float | None = None
    ) -> Tensor:
        """Features ``(B, C, h, w)`` at ``2 ** iterations`` times the resolution; see :meth:`Lift.forward`."""
        return self.module(images, features, stride_px=stride_px, iterations=iterations)  # type: ignore[no-any-return]

    def report(self) -> dict[str, Any]:
        """Facts for ``run.json``."""
        own = self.metadata
        return {"file": self.path.name, "backbone": own.backbone, "facet": own.facet, "patch_px": own.patch_px}

    def require_match(
        self, *, backbone: str, facet: FacetSpec, num_layers: int, patch_px: int, weights_sha256: str = ""
    ) -> None:
        """Refuse features this LiFT was not trained for.

        Args:
            backbone: Name of the backbone in use.
            facet: The facet to lift.
            num_layers: Blocks of the backbone, to count negative layers.
            patch_px: Its patch size.
            weights_sha256: Hash of its weights; compared only where both are known.

        Raises:
            WeightsError: Lists every difference.
        """
        asked = str(facet.resolved(num_layers))
        own = self.metadata
        differences = [
            f"{what} {found} (trained for {wanted})"
            for what, found, wanted in (
                ("backbone", backbone, own.backbone),
                ("facet", asked, own.facet),
                ("patch", patch_px, own.patch_px),
            )
            if found != wanted
        ]
        if own.weights_sha256 and weights_sha256 and own.weights_sha256 != weights_sha256:
            differences.append(
                f"backbone weights {weights_sha256[:12]}... (trained for {own.weights_sha256[:12]}...)"
            )
        if differences:
            raise WeightsError(
                f"{self.path}: this LiFT does not fit: {'; '.join(differences)}; set extract.facets to start with "
                f"{own.facet} on {own.backbone}, train one with train-lift, or set extract.lift to none"
            )


def bundled_name(backbone: str, facet: FacetSpec) -> str:
    """File name of a bundled LiFT.

    >>> bundled_name("dinov2_vits14", FacetSpec("token", 11, True))
    'lift_dinov2_vits14_token11_norm.safetensors'
    """
    return f"lift_{backbone}_{facet.facet}{facet.layer}{'_norm' if facet.norm else ''}.safetensors"


def find_bundled(backbone: str, facet: FacetSpec, num_layers: int = 12) -> Path | None:
    """The bundled LiFT for a backbone and facet, or None where there is none.

    Args:
        backbone: Name of the backbone.
        facet: The facet; a negative layer is counted with ``num_layers``.
        num_layers: Blocks of the backbone.
    """
    path = ASSETS / bundled_name(backbone, facet.resolved(num_layers))
    return path if path.is_file() else None


def load_lift(path: Path, *, patch_px: int | None = None) -> LoadedLift:
    """Load a file written by train-lift or an authors' checkpoint.

    Args:
        path: A ``.safetensors`` file with its header, or a ``.pth`` state dict.
        patch_px: Patch of the backbone, for a state dict whose file name is not a published one.

    Raises:
        WeightsError: The file cannot be read, is not a LiFT, or does not state its patch size.
    """
    tensors = {name.removeprefix("module."): value for name, value in read_weights(path).items()}
    metadata = _metadata(path, patch_px)
    output = tensors.get("outc.bias")
    if output is None or output.ndim != 1 or len(output) < 2 or len(output) % 2:
        raise WeightsError(
            f"{path}: is not a LiFT: it has no 'outc.bias' of an even length (keys: {listed(tensors)})"
        )
    extra = Lift.count_extra_blocks(tensors)
    with torch.device("meta"):  # without memory: a foreign file may have any number of channels
        expected = Lift(len(output), patch_px=metadata.patch_px, extra_blocks=extra).state_dict()
    problems = differences(expected, tensors)
    if problems:
        raise WeightsError(f"{path}: is not a LiFT for {len(output)} channels: tensors {problems}")
    module = Lift(len(output), patch_px=metadata.patch_px, extra_blocks=extra)
    module.load_state_dict({n: v if v.dtype == torch.int64 else v.float() for n, v in tensors.items()})
    return LoadedLift(module.eval().requires_grad_(False), metadata, path)


def _metadata(path: Path, patch_px: int | None) -> LiftMetadata:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path}: cannot read the LiFT file: {error}") from error
        return LiftMetadata.from_header(header, str(path))
    if path.stem in PUBLISHED:
        backbone, patch = PUBLISHED[path.stem]
        return LiftMetadata(backbone, "key@11", patch)
    if patch_px is None:
        raise WeightsError(
            f"{path}: a bare state dict does not say for which backbone it is; known by name: "
            f"{', '.join(PUBLISHED)}"
        )
    return LiftMetadata(path.stem, "key@11", patch_px)


def save_lift(module: Lift, metadata: LiftMetadata, path: Path) -> None:
    """Write a LiFT as float16 safetensors with its header, complete or not at all."""
    tensors: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        value = value.detach().cpu()
        tensors[name] = value.half().contiguous() if value.is_floating_point() else value.contiguous()
    write_bytes_whole(path, save(tensors, metadata=metadata.to_header()))
