"""Views of images for training LiFT: crops, augmentation and scales.

Suri et al., LiFT, ECCV 2024, section 3.2: a square view is used at 448, 224 and 112 px.

Differs from the reference:

- Views after the first are random crops with flips, for image sets much smaller than ImageNet. The first view
  is the whole image resized to a square, as there. All training views are color-jittered.
- The smaller scales are antialiased resizes by default; ``strided`` picks every second pixel as there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import functional as adjust

Subsampling = Literal["antialiased", "strided"]
NUM_SCALES = 3


@dataclass(frozen=True, slots=True)
class ViewSettings:
    """Settings of the views.

    Attributes:
        size_px: Side length of the largest scale; the others are a half and a quarter of it.
        subsampling: How the smaller scales are made.
        jitter: Largest change of brightness, contrast and saturation (factors) and of hue (fractions of a turn).
        min_crop: Smallest share of the image's area a crop has, in (0, 1].
        seed: Seed of all random choices.
    """

    size_px: int = 448
    subsampling: Subsampling = "antialiased"
    jitter: float = 0.2
    min_crop: float = 0.4
    seed: int = 0

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The three scales in pixels, largest first."""
        return self.size_px, self.size_px // 2, self.size_px // 4


@dataclass(frozen=True, slots=True)
class Augmentation:
    """The random choices for one view of one image.

    Attributes:
        crop: Top, left, height and width as fractions of the image.
        flip: Mirror left and right.
        brightness: Factor.
        contrast: Factor.
        saturation: Factor.
        hue: Shift in fractions of a turn, in [-0.5, 0.5].
    """

    crop: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    flip: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0


def draw_augmentation(settings: ViewSettings, image_index: int, view: int) -> Augmentation:
    """The choices for one view; the same for the same seed, image and view.

    View 0 keeps the whole image. Views from 1 crop an area of at least ``min_crop`` with up to a quarter's
    change of aspect.
    """
    rng = np.random.default_rng([settings.seed, view, image_index])
    crop = (0.0, 0.0, 1.0, 1.0)
    if view:
        area, aspect = rng.uniform(settings.min_crop, 1.0), math.exp(rng.uniform(-0.25, 0.25))
        height = min(1.0, math.sqrt(area / aspect))
        width = min(1.0, math.sqrt(area * aspect))
        crop = (rng.uniform(0, 1 - height), rng.uniform(0, 1 - width), height, width)
    low, high = 1 - settings.jitter, 1 + settings.jitter
    return Augmentation(
        crop=crop,
        flip=bool(rng.random() < 0.5),
        brightness=rng.uniform(low, high),
        contrast=rng.uniform(low, high),
        saturation=rng.uniform(low, high),
        hue=rng.uniform(-settings.jitter, settings.jitter) if settings.jitter else 0.0,
    )


def make_view(image: npt.NDArray[np.uint8], choice: Augmentation, size_px: int) -> Tensor:
    """Crop, resize to a square, flip and jitter.

    Args:
        image: uint8 ``(H, W, 3)``, RGB.
        choice: The augmentation.
        size_px: Side length of the result.

    Returns:
        float32 ``(3, S, S)`` in [0, 1].
    """
    height, width = image.shape[:2]
    top, left = round(choice.crop[0] * height), round(choice.crop[1] * width)
    bottom = max(top + 1, round((choice.crop[0] + choice.crop[2]) * height))
    right = max(left + 1, round((choice.crop[1] + choice.crop[3]) * width))
    part = torch.from_numpy(np.ascontiguousarray(image[top:bottom, left:right])).permute(2, 0, 1).float() / 255
    view = F.interpolate(part[None], (size_px, size_px), mode="bicubic", antialias=True)[0].clamp(0, 1)
    if choice.flip:
        view = view.flip(-1)
    view = adjust.adjust_brightness(view, choice.brightness)
    view = adjust.adjust_contrast(view, choice.contrast)
    view = adjust.adjust_saturation(view, choice.saturation)
    return adjust.adjust_hue(view, choice.hue) if choice.hue else view  # type: ignore[no-any-return]


def make_scales(images: Tensor, subsampling: Subsampling) -> list[Tensor]:
    """The three scales of ``(B, 3, S, S)``, largest first.

    >>> [s.shape[-1] for s in make_scales(torch.zeros(1, 3, 8, 8), "strided")]
    [8, 4, 2]
    """
    if subsampling == "strided":
        return [images[..., :: 2**n, :: 2**n] for n in range(NUM_SCALES)]
    side = images.shape[-1]
    smaller = [
        F.interpolate(images, (side // 2**n, side // 2**n), mode="bilinear", antialias=True)
        for n in range(1, NUM_SCALES)
    ]
    return [images, *smaller]
