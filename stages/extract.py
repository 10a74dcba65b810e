"""Stage 2: dense features of every frame from a frozen ViT.

Frames are gathered into batches, resized on the CPU to whole patches, and go through the backbone once. What
leaves is one packet a frame, in order, with its features on the backbone's device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator

from pipeline.config import StrictModel
from pipeline.errors import ConfigError
from pipeline.grid import PatchGrid
from pipeline.models.backbone import Backbone, load_backbone
from pipeline.models.facets import FacetSpec, parse_facet
from pipeline.models.registry import PositionConvention
from pipeline.records import Features, Frame, Packet
from stages.ops.resize import ResizeMethod, model_input_size, resize_image
from stages.ops.saliency import SaliencyCue, first_component_saliency


class ExtractConfig(StrictModel):
    """Settings of the extract stage; every field is explained in ``configs/default.yaml``."""

    enabled: bool = True
    backbone: str = "dinov2_vits14"
    weights: str | None = None
    facets: tuple[str, ...] = ("key@11",)
    short_side: PositiveInt | None = 280
    long_side_multiple: PositiveInt | None = None
    input_hw: tuple[PositiveInt, PositiveInt] | None = None
    resize: ResizeMethod = "area"
    stride_px: PositiveInt | None = None
    position: PositionConvention | None = None
    std_r: Annotated[float, Field(gt=0)] | None = None
    normalize: bool = False
    saliency: SaliencyCue = "auto"
    cls: Literal["facet", "final", "none"] = "facet"
    lift: str = "none"
    lift_iterations: PositiveInt = 1
    batch_size: PositiveInt | Literal["auto"] = "auto"
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"

    @model_validator(mode="after")
    def _check_facets(self) -> ExtractConfig:
        if not self.facets:
            raise ValueError("facets must name at least one facet, for example key@11")
        for text in self.facets:
            try:
                parse_facet(text)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return self


class Extractor:
    """Frames in, packets with features out, in order.

    Invariant: every frame that goes in comes out; at most one batch of frames waits inside. The batch only ever
    shrinks, when the device runs out of memory.
    """

    def __init__(self, config: ExtractConfig, *, backbone: Backbone | None = None) -> None:
        """Load the backbone.

        Args:
            config: The settings.
            backbone: One that is loaded already; ``backbone``, ``weights``, ``stride_px``, ``position`` of the
                config are not read then.

        Raises:
            ConfigError: A device that is not there, a facet, layer or stride that does not exist.
            WeightsError: Weights that are missing or do not fit.
        """
        self.config = config
        self.warnings: list[str] = []
        self.device = _pick_device(config.device)
        self.backbone = backbone or load_backbone(
            config.backbone,
            weights=config.weights,
            stride_px=config.stride_px,
            position=config.position,
        )
        self.backbone.to(self.device)
        self.facets: tuple[FacetSpec, ...] = tuple(parse_facet(text) for text in config.facets)
        for spec in self.facets:
            spec.resolved(self.backbone.num_layers)
        self.precision = _pick_precision(config.precision, self.device)
        self.batch_size = config.batch_size if config.batch_size != "auto" else _default_batch(self.device)
        self.cue = _pick_cue(config.saliency, self.backbone)
        self.input_hw: tuple[int, int] | None = None
        self.grid: PatchGrid | None = None
        std = (config.std_r or self.backbone.std[0], *self.backbone.std[1:])
        self._scale = torch.tensor([1 / (255 * s) for s in std], device=self.device).view(1, 3, 1, 1)
        pairs = zip(self.backbone.mean, std, strict=True)
        self._shift = torch.tensor([-m / s for m, s in pairs], device=self.device).view(1, 3, 1, 1)
        self._num_frames = 0

    def __call__(self, packets: Iterable[Frame]) -> Iterator[Packet]:
        """Yield a packet with features for every frame."""
        batch: list[Frame] = []
        for frame in packets:
            if batch and frame.image_hw != batch[0].image_hw:
                yield from self._extract(batch)
                batch = []
            batch.append(frame)
            if len(batch) >= self.batch_size:
                yield from self._extract(batch)
                batch = []
        if batch:
            yield from self._extract(batch)

    def report(self) -> dict[str, Any]:
        """Facts for ``run.json``."""
        return {
            "backbone": self.backbone.name,
            "weights_sha256": self.backbone.weights_sha256,
            "facets": [str(spec) for spec in self.facets],
            "saliency": self.cue,
            "device": str(self.device),
            "precision": str(self.precision).removeprefix("torch."),
            "batch_size": self.batch_size,
            "stride_px": self.backbone.stride_px,
            "input_hw": self.input_hw,
            "grid_hw": None if self.grid is None else self.grid.grid_hw,
            "frames": self._num_frames,
        }

    def _extract(self, frames: list[Frame]) -> Iterator[Packet]:
        """Features of a batch; halves it as often as the device's memory demands."""
        try:
            packets = self._extract_batch(frames)
        except torch.OutOfMemoryError:
            if len(frames) == 1:
                raise
            packets = None
        if packets is not None:
            yield from packets
            return
        # Outside of the except block: the traceback would keep the failed batch's tensors alive.
        half = (len(frames) + 1) // 2
        if half < self.batch_size:
            self.batch_size = half
            self.warnings.append(
                f"extract: a batch of {len(frames)} frames does not fit on {self.device}; going on with {half}"
            )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        yield from self._extract(frames[:half])
        yield from self._extract(frames[half:])

    def _extract_batch(self, frames: list[Frame]) -> list[Packet]:
        input_hw = self._size_for(frames[0].image_hw)
        stacked = np.stack([resize_image(frame.image, input_hw, self.config.resize) for frame in frames])
        features = self._features(stacked, self.backbone.grid(frames[0].image_hw, input_hw))
        self._num_frames += len(frames)
        return [Packet(frame=frame, features=found) for frame, found in zip(frames, features, strict=True)]

    def _size_for(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        self.input_hw = self.config.input_hw or model_input_size(
            image_hw, self.config.short_side, self.backbone.patch_px, self.config.long_side_multiple
        )
        return self.input_hw

    @torch.inference_mode()
    def _features(self, pixels: np.ndarray[Any, np.dtype[np.uint8]], grid: PatchGrid) -> list[Features]:
        images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float()
        images = images.mul_(self._scale).add_(self._shift).contiguous()
        autocast = (
            nullcontext()
            if self.precision == torch.float32
            else torch.autocast(self.device.type, dtype=self.precision)
        )
        with autocast:
            output = self.backbone(
                images,
                self.facets,
                saliency=self.cue == "cls_attention",
                cls=False if self.config.cls == "none" or not self.backbone.has_cls else self.config.cls,
            )
        maps = {name: values.float() for name, values in output.maps.items()}
        names = [str(spec) for spec in self.facets]
        main = maps[names[0]]
        saliency = output.saliency
        if self.cue == "first_pc":
            saliency = first_component_saliency(main)
        if self.config.normalize:
            maps = {name: F.normalize(values, dim=1) for name, values in maps.items()}
            main = maps[names[0]]
        self.grid = grid
        return [
            Features(
                data=main[i],
                grid=grid,
                saliency=None if saliency is None else saliency[i],
                cls=None if output.cls is None else output.cls[i].float(),
                extra={name: maps[name][i] for name in names[1:]},
            )
            for i in range(len(pixels))
        ]


def _pick_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device '{name}' does not exist; valid: auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda': there is no CUDA device here; set device to auto or cpu")
    return device


def _pick_precision(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def _default_batch(device: torch.device) -> int:
    return 16 if device.type == "cuda" else 4


def _pick_cue(cue: SaliencyCue, backbone: Backbone) -> SaliencyCue:
    if cue != "auto":
        return cue
    return "cls_attention" if backbone.name.startswith("dino_") else "first_pc"
