"""The detector: backbone, LiFT, pyramid, proposals, boxes and masks.

Li et al., ViTDet, 2022, with LiFT (Suri et al. 2024, section 4 "Detection") between the backbone and the pyramid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.core.errors import ConfigError
from pipeline.detect.feature_maps import FeatureMaps, check_lift, lifted_stride
from pipeline.detect.heads import InputSizes, Target, build_heads, build_proposals
from pipeline.detect.pyramid import SimplePyramid
from pipeline.detect.settings import DetectorSettings
from stages.extract.lift.module import LoadedLift
from stages.extract.resize import resize_image

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an image lies in the model's input: scaled to ``size_hw`` in the upper left corner.

    Attributes:
        image_hw: The image's size in pixels.
        size_hw: Its size inside the input.
    """

    image_hw: tuple[int, int]
    size_hw: tuple[int, int]

    @classmethod
    def fit(cls, image_hw: tuple[int, int], canvas_hw: tuple[int, int]) -> Placement:
        """The largest size inside the canvas with the image's proportions.

        >>> Placement.fit((480, 854), (308, 546)).size_hw
        (307, 546)
        """
        scale = min(canvas_hw[0] / image_hw[0], canvas_hw[1] / image_hw[1])
        height, width = (max(1, int(side * scale + 0.5)) for side in image_hw)
        return cls(image_hw, (min(height, canvas_hw[0]), min(width, canvas_hw[1])))

    def factors(self) -> tuple[float, float, float, float]:
        """Factors from image to input pixels for left, top, right, bottom."""
        down, across = (new / old for new, old in zip(self.size_hw, self.image_hw, strict=True))
        return across, down, across, down


@dataclass(frozen=True, slots=True)
class Instances:
    """The objects found in one image, best first.

    Attributes:
        xyxy: float32 ``(N, 4)``: left, top, right, bottom in image pixels.
        scores: float32 ``(N,)`` in [0, 1].
        labels: int64 ``(N,)``: places in the list of categories.
        masks: bool ``(N, H, W)`` at the image's size.
    """

    xyxy: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    masks: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.scores)


class Detector(nn.Module):
    """A ViTDet detector. Invariant: the backbone and LiFT have no gradients unless a trainer switches them on.

    Args:
        settings: The architecture.
        maps: The backbone.
        lift: Between the backbone and the pyramid; None leaves it out.

    Attributes:
        stride_px: Of the map the pyramid is built on, in input pixels.
        strides: Of the pyramid's levels, the pooled one last.

    Raises:
        ConfigError: The canvas is not whole cells on every level.
        WeightsError: A LiFT that was trained for other features.
    """

    def __init__(self, settings: DetectorSettings, maps: FeatureMaps, lift: LoadedLift | None = None) -> None:
        super().__init__()
        if lift is not None:
            check_lift(lift, maps)
        self.settings = settings
        self.maps = maps
        self.lift = lift
        self.lift_module = None if lift is None else lift.module
        self.stride_px = lifted_stride(maps, lift)
        levels = [self.stride_px / scale for scale in settings.scales]
        self.strides = [*levels, 2 * levels[-1]]
        _check_canvas(settings.canvas_hw, maps.patch_px, levels[-1])
        self.pyramid = SimplePyramid(maps.channels, settings.channels, settings.scales)
        self.proposals = build_proposals(settings, self.strides)
        self.heads = build_heads(settings, levels)
        self.register_buffer("_mean", torch.tensor(maps.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(maps.std).view(1, 3, 1, 1), persistent=False)
        self._mean: Tensor
        self._std: Tensor

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self._mean.device

    @property
    def trained_parts(self) -> dict[str, nn.Module]:
        """The parts that training changes with a frozen backbone, by their names in a weights file."""
        return {"pyramid": self.pyramid, "proposals": self.proposals, "heads": self.heads}

    def place(self, images: Sequence[Image]) -> tuple[Tensor, list[Placement]]:
        """uint8 RGB images of any sizes as one normalized input ``(B, 3, *canvas_hw)``, padded with zeros."""
        canvas = self.settings.canvas_hw
        places = [Placement.fit((image.shape[0], image.shape[1]), canvas) for image in images]
        batch = torch.zeros(len(images), 3, *canvas, device=self.device)
        for row, (image, place) in enumerate(zip(images, places, strict=True)):
            pixels = torch.from_numpy(resize_image(image, place.size_hw, "bilinear_antialias").copy())
            values = pixels.to(self.device).permute(2, 0, 1)[None].float() / 255
            height, width = place.size_hw
            batch[row, :, :height, :width] = ((values - self._mean) / self._std)[0]
        return batch, places

    def feature_maps(self, inputs: Tensor) -> Tensor:
        """The map the pyramid is built on: ``(B, 3, H, W)`` to ``(B, C, H / stride_px, W / stride_px)``."""
        values: Tensor = self.maps(inputs)
        if self.lift_module is not None:
            values = self.lift_module(inputs, values)
        return values

    def losses(
        self, feature_maps: Tensor, sizes: Sequence[tuple[int, int]], targets: list[Target]
    ) -> dict[str, Tensor]:
        """The five losses of Mask R-CNN by name; the module must be in training mode.

        Args:
            feature_maps: From :meth:`feature_maps`.
            sizes: Height and width of each image inside the input.
            targets: In input pixels.
        """
        levels = self.pyramid(feature_maps)
        proposals, first = self.proposals(InputSizes(list(sizes)), levels, targets)
        _, second = self.heads(levels, proposals, list(sizes), targets)
        return {**first, **second}

    @torch.inference_mode()
    def detect(self, images: Sequence[Image], *, min_score: float = 0.05) -> list[Instances]:
        """Find the objects in images of any sizes; the module must be in eval mode.

        Args:
            images: uint8 RGB ``(H, W, 3)``.
            min_score: Detections with a lower score are dropped; those below 0.05 are never kept.
        """
        inputs, places = self.place(images)
        return self.detect_in_maps(self.feature_maps(inputs), places, min_score=min_score)

    @torch.inference_mode()
    def detect_in_maps(
        self, feature_maps: Tensor, places: Sequence[Placement], *, min_score: float = 0.05
    ) -> list[Instances]:
        """The same from maps that are there already."""
        sizes = [place.size_hw for place in places]
        levels = self.pyramid(feature_maps)
        proposals, _ = self.proposals(InputSizes(sizes), levels)
        found, _ = self.heads(levels, proposals, sizes)
        return [_to_image(own, place, min_score) for own, place in zip(found, places, strict=True)]


def _check_canvas(canvas_hw: tuple[int, int], patch_px: int, coarsest_px: float) -> None:
    unit = max(patch_px, int(coarsest_px))
    if any(side % unit for side in canvas_hw):
        nearest = [max(1, round(side / unit)) * unit for side in canvas_hw]
        raise ConfigError(
            f"an input of {canvas_hw[0]} x {canvas_hw[1]} px is not whole cells of {unit} px; nearest: "
            f"{nearest[0]},{nearest[1]}"
        )


def _to_image(found: dict[str, Tensor], place: Placement, min_score: float) -> Instances:
    """Detections in input pixels as instances in image pixels; boxes that become empty are dropped."""
    height, width = place.image_hw
    boxes = found["boxes"] / found["boxes"].new_tensor(place.factors())
    limit = boxes.new_tensor([width, height, width, height])
    boxes = torch.minimum(boxes.clamp_min(0), limit)
    kept = (found["scores"] >= min_score) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    masks = paste_masks(found["masks"][kept][:, 0], boxes[kept], place.image_hw)
    return Instances(
        boxes[kept].cpu().numpy().astype(np.float32),
        found["scores"][kept].cpu().numpy().astype(np.float32),
        (found["labels"][kept] - 1).cpu().numpy(),
        masks,
    )


def paste_masks(masks: Tensor, boxes: Tensor, image_hw: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Soft masks over boxes as binary masks of the image: bilinear at the pixels' centers, 0.5 is inside.

    Args:
        masks: ``(N, M, M)`` in [0, 1].
        boxes: ``(N, 4)`` in image pixels.
        image_hw: Height and width.

    Returns:
        bool ``(N, H, W)``.
    """
    height, width = image_hw
    pasted = np.zeros((len(masks), height, width), np.bool_)
    for row, (mask, box) in enumerate(zip(masks, boxes.tolist(), strict=True)):
        left, top = max(0, int(box[0])), max(0, int(box[1]))
        right, bottom = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
        if right <= left or bottom <= top:
            continue
        x, y = (
            ((torch.arange(first, last, device=mask.device) + 0.5 - start) / (stop - start)) * 2 - 1
            for first, last, start, stop in ((left, right, box[0], box[2]), (top, bottom, box[1], box[3]))
        )
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=2)
        inside = F.grid_sample(mask[None, None], grid[None].to(mask.dtype), align_corners=False)[0, 0]
        pasted[row, top:bottom, left:right] = (inside >= 0.5).cpu().numpy()
    return pasted


def count_parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def pretty_settings(detector: Detector) -> dict[str, Any]:
    """Facts about a detector for a JSON file."""
    lift = detector.lift
    return {
        **detector.settings.model_dump(mode="json"),
        "level_strides_px": detector.strides,
        "lift": None if lift is None else lift.report(),
        "trained_parameters": sum(count_parameters(part) for part in detector.trained_parts.values()),
    }
