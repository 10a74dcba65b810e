"""Stage 2: dense features of every frame from a frozen ViT.

Frames are gathered into batches, resized on the CPU to whole patches, and go through the backbone once, with
LiFT right behind it. What leaves is one packet a frame, in order, with its features on the backbone's device.
On CUDA a batch is copied while the one before is computed, and nothing here waits for the device, except the small
eigenproblem of the ``ncut`` and ``first_pc`` saliency.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from pipeline.core.config import StrictModel
from pipeline.core.errors import ConfigError
from pipeline.core.grid import PatchGrid
from pipeline.core.records import Features, Frame, Packet
from stages.extract.backbone.backbone import Backbone, load_backbone
from stages.extract.backbone.device import Precision, autocast, pick_device, pick_precision, store_matmul_weights
from stages.extract.backbone.facets import FacetSpec, parse_facet
from stages.extract.backbone.registry import PositionConvention
from stages.extract.high_variance import HighVarianceFilter
from stages.extract.lift.choice import choose_lift
from stages.extract.lift.module import LoadedLift
from stages.extract.log_binning import log_bin
from stages.extract.repair.sinder import DefectSmoother
from stages.extract.repair.singular_directions import defect_directions
from stages.extract.resize import ResizeMethod, model_input_size
from stages.extract.saliency import SaliencyCue, SaliencyEstimator, pick_cue
from stages.extract.upload import Uploader


class ExtractConfig(StrictModel):
    """Settings of the extract stage; ``configs/default.yaml`` explains every field."""

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
    log_bins: NonNegativeInt = 0
    normalize: bool = False
    saliency: SaliencyCue = "auto"
    cls: Literal["facet", "final", "none"] = "facet"
    lift: str = "none"
    lift_iterations: PositiveInt = 1
    repair: Literal["none", "smooth"] = "none"
    drop_high_variance: NonNegativeInt = 0
    high_variance_indices: tuple[NonNegativeInt, ...] | None = None
    batch_size: PositiveInt | Literal["auto"] = "auto"
    device: str = "auto"
    precision: Precision = "auto"

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

    Invariant: every frame that goes in comes out; at most one batch of frames waits inside (and the sample that
    high-variance channels are chosen from). The batch only ever shrinks, when the device runs out of memory.
    """

    def __init__(self, config: ExtractConfig, *, backbone: Backbone | None = None) -> None:
        """Load the backbone.

        Args:
            config: The settings.
            backbone: One that is loaded already, which then belongs to this object; ``backbone``, ``weights``,
                ``stride_px`` and ``position`` of the config are not read.

        Raises:
            ConfigError: A device that is not there; a facet, layer, stride or cue that the model does not have.
            WeightsError: Weights that are missing or do not fit.
        """
        self.config = config
        self.warnings: list[str] = []
        self.device = pick_device(config.device)
        self.precision = pick_precision(config.precision, self.device)
        self.backbone = backbone or load_backbone(
            config.backbone, weights=config.weights, stride_px=config.stride_px, position=config.position
        )
        self.facets: tuple[FacetSpec, ...] = tuple(parse_facet(text) for text in config.facets)
        self._names = [str(spec) for spec in self.facets]
        for spec in self.facets:
            spec.resolved(self.backbone.num_layers)
        self.cue = pick_cue(config.saliency, self.backbone)
        self._saliency = SaliencyEstimator(
            self.cue, self.facets, self.backbone.num_layers, final_cls=config.cls == "final"
        )
        extra = () if self._saliency.spec is None else (self._saliency.spec,)
        self._asked = tuple({str(spec): spec for spec in (*self.facets, *extra)}.values())
        self._lift = _load_lift(config, self.backbone, self.facets[0], self.device)
        self._smoother = _attach_smoother(config, self.backbone)
        self._filter = _channel_filter(config, self.backbone.embed_dim)
        self.backbone.to(self.device)
        store_matmul_weights(self.backbone.vit, self.precision)
        self.batch_size = config.batch_size if config.batch_size != "auto" else _default_batch(self.device)
        self._upload = Uploader(self.device, config.resize)
        self._scale, self._shift = _normalisation(config, self.backbone, self.device)
        self._input_hw: tuple[int, int] | None = None
        self._grid: PatchGrid | None = None
        self._num_frames = 0

    def __call__(self, packets: Iterable[Frame]) -> Iterator[Packet]:
        """Yield a packet with features for every frame of one video; the next call is another video."""
        self._num_frames, self._filter = 0, _channel_filter(self.config, self.backbone.embed_dim)
        self.warnings.clear()
        extracted = self._batches(packets)
        for packet in extracted if self._filter is None else self._filter(extracted):
            yield self._finish(packet)

    def report(self) -> dict[str, Any]:
        """Facts for ``run.json``."""
        facts: dict[str, Any] = {
            "backbone": self.backbone.name,
            "weights_sha256": self.backbone.weights_sha256,
            "facets": self._names,
            "saliency": self.cue,
            "device": str(self.device),
            "precision": str(self.precision).removeprefix("torch."),
            "batch_size": self.batch_size,
            "stride_px": self.backbone.stride_px,
            "position": self.backbone.position,
            "input_hw": self._input_hw,
            "grid_hw": None if self._grid is None else self._grid.grid_hw,
            "frames": self._num_frames,
        }
        if self._lift is not None:
            facts["lift"] = {"iterations": self.config.lift_iterations, **self._lift.report()}
        if self._smoother is not None:
            facts["repair"] = self._smoother.report()
        if self._filter is not None:
            facts["high_variance"] = self._filter.report()
        return facts

    def _batches(self, frames: Iterable[Frame]) -> Iterator[Packet]:
        batch: list[Frame] = []
        for frame in frames:
            if batch and frame.image_hw != batch[0].image_hw:
                yield from self._extract(batch)
                batch = []
            batch.append(frame)
            if len(batch) >= self.batch_size:
                yield from self._extract(batch)
                batch = []
        if batch:
            yield from self._extract(batch)

    def _extract(self, frames: list[Frame]) -> Iterator[Packet]:
        """Packets of a batch; halves it as often as the device's memory demands."""
        features: list[Features] | None = None
        try:
            features = self._features(frames)
        except torch.OutOfMemoryError:
            if len(frames) == 1:
                raise
        if features is not None:
            self._num_frames += len(frames)
            for frame, found in zip(frames, features, strict=True):
                yield Packet(frame=frame, features=found)
            return
        # Not inside the except block: there the traceback keeps the failed batch's tensors alive.
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

    @torch.inference_mode()
    def _features(self, frames: list[Frame]) -> list[Features]:
        image_hw = frames[0].image_hw
        input_hw = self.config.input_hw or model_input_size(
            image_hw, self.config.short_side, self.backbone.patch_px, self.config.long_side_multiple
        )
        pixels = self._upload([frame.image for frame in frames], input_hw)
        images = torch.addcmul(self._shift, pixels.permute(0, 3, 1, 2).float(), self._scale)
        cls: Any = self.config.cls if self.config.cls != "none" and self.backbone.has_cls else False
        with autocast(self.device, self.precision):
            output = self.backbone(images, self._asked, saliency=self.cue == "cls_attention", cls=cls)
        maps = {name: output.maps[name].float() for name in self._names}
        saliency = self._saliency(output, maps[self._names[0]])
        grid = self.backbone.grid(image_hw, input_hw)
        if self._lift is not None:
            maps, saliency, grid = self._lifted(self._lift, images, maps, saliency, grid)
        self._input_hw, self._grid = input_hw, grid
        main, *further = self._names
        return [
            Features(
                data=maps[main][i],
                grid=grid,
                saliency=None if saliency is None else saliency[i],
                cls=None if output.cls is None else output.cls[i].float(),
                extra={name: maps[name][i] for name in further},
            )
            for i in range(len(frames))
        ]

    def _lifted(
        self,
        lift: LoadedLift,
        images: Tensor,
        maps: dict[str, Tensor],
        saliency: Tensor | None,
        grid: PatchGrid,
    ) -> tuple[dict[str, Tensor], Tensor | None, PatchGrid]:
        """The main facet through LiFT; everything else bilinearly onto the same, finer grid."""
        main = self._names[0]
        with autocast(self.device, self.precision):
            lifted = lift.upsample(
                images, maps[main], self.config.lift_iterations, stride_px=self.backbone.stride_px
            ).float()
        for _ in range(self.config.lift_iterations):
            grid = grid.subdivided(2)
        maps = {
            name: lifted if name == main else F.interpolate(values, size=grid.grid_hw, mode="bilinear")
            for name, values in maps.items()
        }
        if saliency is not None:
            saliency = F.interpolate(saliency[:, None], size=grid.grid_hw, mode="bilinear")[:, 0]
        return maps, saliency, grid

    @torch.inference_mode()
    def _finish(self, packet: Packet) -> Packet:
        """Log binning and normalisation, which see the channels that are left."""
        features = packet.features
        if features is None or not (self.config.log_bins or self.config.normalize):
            return packet
        data, extra = features.data, features.extra
        if self.config.log_bins:
            data = log_bin(data, self.config.log_bins)
        if self.config.normalize:
            data = F.normalize(data, dim=0)
            extra = {name: F.normalize(values, dim=0) for name, values in extra.items()}
        return replace(packet, features=replace(features, data=data, extra=extra))


def _default_batch(device: torch.device) -> int:
    return 16 if device.type == "cuda" else 4


def _normalisation(config: ExtractConfig, backbone: Backbone, device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and offset from uint8 to normalised values, each ``(1, 3, 1, 1)``."""
    mean = torch.tensor(backbone.mean, device=device).view(1, 3, 1, 1)
    std = torch.tensor((config.std_r or backbone.std[0], *backbone.std[1:]), device=device).view(1, 3, 1, 1)
    return 1 / (255 * std), -mean / std


def _channel_filter(config: ExtractConfig, channels: int) -> HighVarianceFilter | None:
    if not config.drop_high_variance and config.high_variance_indices is None:
        return None
    return HighVarianceFilter(config.drop_high_variance, indices=config.high_variance_indices, channels=channels)


def _attach_smoother(config: ExtractConfig, backbone: Backbone) -> DefectSmoother | None:
    """Mend defective tokens inside the backbone's forward, where the config asks for it."""
    if config.repair == "none":
        return None
    directions = defect_directions(list(backbone.vit.blocks), fit="exact")
    smoother = DefectSmoother(
        directions.to(pick_device(config.device)), num_prefix_tokens=backbone.num_prefix_tokens
    )
    backbone.token_hook = smoother
    return smoother


def _load_lift(
    config: ExtractConfig, backbone: Backbone, spec: FacetSpec, device: torch.device
) -> LoadedLift | None:
    """The LiFT module for the main facet, or None.

    Raises:
        ConfigError: A file made for another backbone, facet or layer.
    """
    if config.lift == "none":
        return None
    loaded = choose_lift(config.lift, backbone, spec)
    return None if loaded is None else loaded.prepared(device)
