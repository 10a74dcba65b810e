"""One batch of images through the frozen ViT: upload, resize, forward, saliency and LiFT.

On a card :meth:`FeatureModel.launch` gives the work to the device and returns; nothing in it waits. Results come
to the host in one copy per batch, :meth:`FeatureModel.send_to_host`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.device_stream import DeviceStreams, streams_of
from pipeline.core.errors import ConfigError
from pipeline.core.host_copy import HostCopy, HostFeatures
from pipeline.core.records import Features
from pipeline.core.state import State
from stages.extract.backbone.backbone import Backbone, BackboneOutput
from stages.extract.backbone.cpu_precision import faster_precision
from stages.extract.backbone.device import autocast, pick_device, pick_precision, store_matmul_weights
from stages.extract.backbone.facets import FacetSpec, parse_facet
from stages.extract.backbone.request import ClsKind
from stages.extract.compiled import Computed, compiled
from stages.extract.config import ExtractConfig
from stages.extract.finite import facet_sums
from stages.extract.lift.choice import choose_lift
from stages.extract.lift.module import LoadedLift
from stages.extract.parts import Parts
from stages.extract.repair.sinder import DefectSmoother
from stages.extract.repair.singular_directions import defect_directions
from stages.extract.resize import bound_input_size, count_cells, model_input_size
from stages.extract.saliency import SaliencyEstimator, pick_cue
from stages.extract.upload import Uploader

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Launched:
    """A batch that the device is working on.

    Attributes:
        features: One per image.
        sums: The sum of every facet, ``(B, facets)``; not finite where a value of the facet is not.
    """

    features: list[Features]
    sums: Tensor


class FeatureModel:
    """Images of one size in, their features out. Holds models and settings, and nothing of a video.

    Attributes:
        backbone: The frozen ViT, on ``device``.
        facets: What is extracted; the first is ``Features.data``.
        cue: The saliency cue in use, never ``auto``.
        device: Where the features are.
        precision: Of the matrix products.
        precision_choice: Why; for ``run.json``.
        lift: The LiFT of the first facet, or None.
        smoother: Replaces defective tokens inside the forward, or None.
        streams: The device's.
    """

    def __init__(self, config: ExtractConfig, backbone: Backbone, streams: DeviceStreams | None = None) -> None:
        """Prepare the backbone, which then belongs to this object.

        Args:
            config: The settings.
            backbone: The frozen ViT.
            streams: Of the device; those of ``config.device`` if None.

        Raises:
            ConfigError: A device that does not exist; a facet, layer, cue or input size that the model does not
                support.
            WeightsError: A LiFT file that does not fit.
        """
        self.config = config
        self.backbone = backbone
        self.device = pick_device(config.device)
        self.precision = pick_precision(config.precision, self.device)
        automatic = config.precision == "auto" and self.device.type == "cpu"
        self.precision_choice = faster_precision().reason() if automatic else "as configured"
        self.facets: tuple[FacetSpec, ...] = tuple(parse_facet(text) for text in config.facets)
        self.names = [str(spec) for spec in self.facets]
        for spec in self.facets:
            spec.resolved(backbone.num_layers)
        self.cue = pick_cue(config.saliency, backbone)
        self._cls: ClsKind | None = config.cls if config.cls != "none" and backbone.has_cls else None
        self._saliency = SaliencyEstimator(
            self.cue, self.facets, backbone.num_layers, final_cls=self._cls == "final"
        )
        extra = () if self._saliency.spec is None else (self._saliency.spec,)
        self._asked = tuple({str(spec): spec for spec in (*self.facets, *extra)}.values())
        if config.input_hw is not None:
            _check_input_size(config.input_hw, backbone, config.max_cells)
        self.lift = _load_lift(config, backbone, self.facets[0], self.device, self.precision)
        self.smoother = _attach_smoother(config, backbone, self.device)
        if config.compile and self.smoother is not None:
            raise ConfigError(
                "extract.compile cannot be used with extract.repair: smooth, which counts as it runs"
            )
        self._compiled = compiled(self._compute, self.device) if config.compile else None
        backbone.to(self.device)
        if self.device.type == "cpu" and self.precision == torch.bfloat16 and not config.compile:
            backbone.pack_for_cpu()
        store_matmul_weights(backbone.vit, self.precision)
        self.streams = streams or streams_of(self.device)
        self._upload = Uploader(self.streams, config.resize)
        self._copies = self.streams.new_stream()
        self._parts = Parts()
        self._scale, self._shift = _normalization(config, backbone, self.device)

    def input_size(self, image_hw: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """The size at the model for frames of ``image_hw``, and the size before ``max_cells`` limited it."""
        if self.config.input_hw is not None:
            return self.config.input_hw, self.config.input_hw
        patch = self.backbone.patch_px
        wanted = model_input_size(image_hw, self.config.short_side, patch, self.config.long_side_multiple)
        return bound_input_size(wanted, patch, self.backbone.stride_px, self.config.max_cells), wanted

    @torch.inference_mode()
    def launch(
        self,
        images: Sequence[Image],
        input_hw: tuple[int, int],
        on_device: Sequence[Tensor | None] = (),
        *,
        is_full: bool = False,
    ) -> Launched:
        """Give the work on a batch to the current stream.

        Args:
            images: uint8 RGB ``(H, W, 3)``, all of one size.
            input_hw: Height and width at the model, from :meth:`input_size`.
            on_device: The images where a card has decoded them, see :attr:`Frame.on_device`.
            is_full: Whether it is a full batch, which is compiled where the config asks for it.
        """
        if self.streams.is_asynchronous or self.smoother is not None or self._compiled is not None:
            return self._launch_part(images, input_hw, on_device, is_full=is_full)

        def launch(part: slice) -> Launched:
            return self._launch_part(images[part], input_hw, on_device[part], is_full=False)

        launched = self._parts(launch, len(images))
        return Launched(
            [features for part in launched for features in part.features],
            torch.cat([part.sums for part in launched]),
        )

    @torch.inference_mode()
    def _launch_part(
        self,
        images: Sequence[Image],
        input_hw: tuple[int, int],
        on_device: Sequence[Tensor | None],
        *,
        is_full: bool,
    ) -> Launched:
        """:meth:`launch` of images that go through the model together."""
        batch = torch.addcmul(self._shift, self._upload(images, input_hw, on_device), self._scale)
        found = self.forward(batch, is_full=is_full)
        maps, saliency = found.maps, found.saliency
        grid = self.backbone.grid((images[0].shape[0], images[0].shape[1]), input_hw)
        main, *further = self.names
        before: list[Features | None] = [None] * len(images)
        if found.before_lift is not None:
            coarse = found.saliency_before_lift
            before = [
                Features(data=data, grid=grid, saliency=None if coarse is None else coarse[i])
                for i, data in enumerate(found.before_lift)
            ]
            for _ in range(self.config.lift_iterations):
                grid = grid.subdivided(2)
        features = [
            Features(
                data=maps[main][i],
                grid=grid,
                saliency=None if saliency is None else saliency[i],
                cls=None if found.cls is None else found.cls[i],
                extra={name: maps[name][i] for name in further},
                before_lift=before[i],
            )
            for i in range(len(images))
        ]
        return Launched(features, facet_sums([maps[name] for name in self.names]))

    def send_to_host(self, launched: Launched, *, features: bool) -> tuple[list[Features], HostCopy]:
        """Copy what the host needs of a batch, in one go and beside the device's other work.

        Args:
            launched: The batch.
            features: Send the data and the saliency on the backbone's grid too, not the sums alone; only from a
                card.

        Returns:
            The features, with :attr:`Features.host` where they were sent, and the copy, whose last array is the
            sums.
        """
        if not (features and self.streams.is_asynchronous):
            return launched.features, HostCopy(self.streams, [launched.sums], by=self._copies)
        coarse = [item.coarse for item in launched.features]
        values = [item.data for item in coarse]
        values += [item.saliency for item in coarse if item.saliency is not None]
        copy = HostCopy(self.streams, [*values, launched.sums], by=self._copies)
        sent = [replace(item, host=HostFeatures(copy, row, len(coarse))) for row, item in enumerate(coarse)]
        if self.lift is None:
            return sent, copy
        return [
            replace(item, before_lift=before) for item, before in zip(launched.features, sent, strict=True)
        ], copy

    def forward(self, batch: Tensor, *, is_full: bool) -> Computed:
        """Everything that is computed from normalized images ``(B, 3, H, W)``; see :meth:`launch`."""
        if self._compiled is None or not is_full:
            return self._compute(batch)
        self.backbone.prepare((batch.shape[2], batch.shape[3]))
        return self._compiled(batch)

    def _compute(self, batch: Tensor) -> Computed:
        """Everything from normalized images ``(B, 3, H, W)`` on; a function of the batch alone but for counts."""
        with autocast(self.device, self.precision):
            output = self.backbone(batch, self._asked, saliency=self.cue == "cls_attention", cls=self._cls)
        maps = {name: output.maps[name].float() for name in self.names}
        saliency = self._saliency_of(output, maps[self.names[0]])
        cls = None if output.cls is None else output.cls.float()
        if self.lift is None:
            return Computed(maps, saliency, cls)
        lifted = self._lifted(self.lift, batch, maps, saliency)
        return Computed(*lifted, cls, maps[self.names[0]], saliency)

    def _saliency_of(self, output: BackboneOutput, features: Tensor) -> Tensor | None:
        if self.cue != "none" and features.shape[-2:].numel() == 1:
            return torch.zeros_like(features[:, 0])  # a single cell cannot stand out from others
        return self._saliency(output, features)

    def _lifted(
        self,
        lift: LoadedLift,
        images: Tensor,
        maps: dict[str, Tensor],
        saliency: Tensor | None,
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """The main facet through LiFT; everything else bilinearly onto the same, finer grid."""
        main = self.names[0]
        with autocast(self.device, self.precision):
            lifted = lift.module(
                images, maps[main], stride_px=self.backbone.stride_px, iterations=self.config.lift_iterations
            ).float()
        size = (lifted.shape[2], lifted.shape[3])
        maps = {
            name: lifted if name == main else F.interpolate(values, size=size, mode="bilinear")
            for name, values in maps.items()
        }
        if saliency is not None:
            saliency = F.interpolate(saliency[:, None], size=size, mode="bilinear")[:, 0]
        return maps, saliency

    def reset(self) -> None:
        """Forget the counts of the last video."""
        if self.smoother is not None:
            self.smoother.reset()

    def state(self) -> State:
        """The counts of the video so far."""
        return {"smoother": None if self.smoother is None else self.smoother.state()}

    def restore(self, state: State) -> None:
        """Go on from :meth:`state`."""
        if self.smoother is not None:
            self.smoother.restore(state["smoother"])


def _check_input_size(input_hw: tuple[int, int], backbone: Backbone, max_cells: int) -> None:
    patch = backbone.patch_px
    if min(input_hw) < patch:
        raise ConfigError(
            f"extract.input_hw {list(input_hw)} is smaller than one patch; give at least {patch} px per side"
        )
    cells = count_cells(input_hw, patch, backbone.stride_px)
    if cells > max_cells:
        raise ConfigError(
            f"extract.input_hw {list(input_hw)} has {cells} cells, more than extract.max_cells = {max_cells}; "
            "choose a smaller input or raise extract.max_cells"
        )


def _normalization(config: ExtractConfig, backbone: Backbone, device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and offset from uint8 to normalized values, each ``(1, 3, 1, 1)``."""
    mean = torch.tensor(backbone.mean, device=device).view(1, 3, 1, 1)
    std = torch.tensor((config.std_r or backbone.std[0], *backbone.std[1:]), device=device).view(1, 3, 1, 1)
    return 1 / (255 * std), -mean / std


def _attach_smoother(config: ExtractConfig, backbone: Backbone, device: torch.device) -> DefectSmoother | None:
    """Replace defective tokens inside the backbone's forward, where the config asks for it."""
    if config.repair == "none":
        return None
    directions = defect_directions(list(backbone.vit.blocks), fit="exact")
    smoother = DefectSmoother(directions.to(device), num_prefix_tokens=backbone.num_prefix_tokens)
    backbone.token_hook = smoother
    return smoother


def _load_lift(
    config: ExtractConfig, backbone: Backbone, spec: FacetSpec, device: torch.device, dtype: torch.dtype
) -> LoadedLift | None:
    """The LiFT module for the main facet, or None.

    Raises:
        WeightsError: A file that cannot be read, or made for another backbone, facet or layer.
    """
    if config.lift == "none":
        return None
    loaded = choose_lift(config.lift, backbone, spec)
    return None if loaded is None else loaded.prepared(device, dtype)
