"""Training data for LiFT: augmented views of images and the frozen ViT's features of them, computed once.

Suri et al., LiFT, ECCV 2024, section 3.2: a view is seen at 448, 224 and 112 px; the features at one scale are
the target of the features at the next smaller one.

A cache is a folder with one sub-folder a view. Each holds, as float16 memory maps with one row an image, the
normalised images of the input scales and the features of all scales, and a list of the rows that are done, so
that an interrupted run goes on where it stopped. ``manifest.json`` says what it was made from; another
backbone, facet, image list, seed or way of sub-sampling gives another folder.

Differs from the reference:

- Views after the first are random crops with flips, for image sets much smaller than ImageNet. The first view
  is the whole image made square, as there. All training views are colour-jittered.
- The smaller scales are anti-aliased resizes by default; ``strided`` picks every second pixel as there.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

import pipeline.torchvision_ops  # noqa: F401  (before torchvision)
from pipeline.errors import MediaError, OutputError

Subsampling = Literal["antialiased", "strided"]
Extract = Callable[[Tensor], Tensor]
"""``(B, 3, S, S)`` normalised images to ``(B, C, h, w)`` features."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
NUM_SCALES = 3


@dataclass(frozen=True, slots=True)
class ViewSettings:
    """How views are made.

    Attributes:
        size_px: Side of the largest scale; the others are a half and a quarter of it.
        subsampling: How the smaller scales are made.
        jitter: Largest change of brightness, contrast and saturation (factors) and of hue (turns).
        min_crop: Smallest share of the image's area a crop has, in (0, 1].
        seed: Of all random choices.
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
        hue: Turn in [-0.5, 0.5].
    """

    crop: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    flip: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0


def list_images(folder: Path) -> list[Path]:
    """The images of a folder and its sub-folders, sorted by path.

    Raises:
        MediaError: There is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise MediaError(f"{folder}: no such folder of images")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise MediaError(f"{folder}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return found


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
    """Crop, make square, flip and jitter.

    Args:
        image: uint8 ``(H, W, 3)``, RGB.
        choice: What to do.
        size_px: Side of the result.

    Returns:
        float32 ``(3, S, S)`` in [0, 1].
    """
    from torchvision.transforms import functional as adjust

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


@dataclass(frozen=True, slots=True)
class Batch:
    """Some views at all scales, largest first.

    Attributes:
        images: Normalised ``(B, 3, S / 2, S / 2)`` and ``(B, 3, S / 4, S / 4)``.
        features: ``(B, C, h, w)`` of the three scales.
    """

    images: tuple[Tensor, Tensor]
    features: tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class CacheKey:
    """Everything the cached values depend on.

    Attributes:
        backbone: Name.
        facet: Spec as text.
        weights_sha256: Of the backbone's weights.
        files: Hash over the names and sizes of the images.
        held_out: Number of images kept for validation.
        settings: How views are made.
    """

    backbone: str
    facet: str
    weights_sha256: str
    files: str
    held_out: int
    settings: ViewSettings

    def digest(self) -> str:
        """A short name for the folder."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


def hash_files(files: Iterable[Path]) -> str:
    """A hash over names and sizes."""
    text = "\n".join(f"{p.name} {p.stat().st_size}" for p in files)
    return hashlib.sha256(text.encode()).hexdigest()


def split_held_out(num_images: int, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices for training and for validation, the same for the same seed.

    Raises:
        MediaError: Nothing would be left to train on.
    """
    if num_images - held_out < 1:
        raise MediaError(f"{num_images} images cannot give {held_out} for validation and any for training")
    order = np.random.default_rng([seed, num_images]).permutation(num_images).tolist()
    return sorted(order[held_out:]), sorted(order[:held_out])


@dataclass
class FeatureCache:
    """One folder of cached views.

    Attributes:
        folder: Where it is.
        key: What it was made from.
        files: The images.
        train: Indices of the training images.
        held_out: Indices of the validation images; they have view 0 only, without augmentation.
    """

    folder: Path
    key: CacheKey
    files: Sequence[Path]
    train: list[int]
    held_out: list[int]
    _maps: dict[tuple[int, str], npt.NDArray[np.float16]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, root: Path, key: CacheKey, files: Sequence[Path]) -> FeatureCache:
        """The cache for ``key`` below ``root``, made where it does not exist.

        Raises:
            OutputError: The folder cannot be written.
        """
        folder = root / f"{key.backbone}-{key.digest()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "manifest.json").write_text(json.dumps(asdict(key), indent=1), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{folder}: cannot write the feature cache: {error.strerror}") from error
        train, held_out = split_held_out(len(files), key.held_out, key.settings.seed)
        return cls(folder, key, files, train, held_out)

    def rows(self, view: int) -> list[int]:
        """Images that have this view, in row order."""
        return sorted([*self.train, *self.held_out]) if view == 0 else self.train

    def missing(self, view: int) -> list[int]:
        """Rows of a view that are not computed yet."""
        done = self._done(view)
        return [row for row in range(len(self.rows(view))) if not done[row]]

    def fill(
        self,
        view: int,
        extract: Extract,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        batch_size: int = 4,
        device: torch.device | str = "cpu",
        on_rows: Callable[[int], object] = lambda count: None,
    ) -> None:
        """Compute the missing rows of a view.

        Args:
            view: 0 is the whole image, others are crops.
            extract: The frozen ViT.
            mean: Per-channel mean of its normalisation.
            std: Per-channel standard deviation.
            batch_size: Views a pass.
            device: Where ``extract`` wants its images.
            on_rows: Called with the number of rows written, for progress.
        """
        centre = torch.tensor(mean).view(1, 3, 1, 1)
        spread = torch.tensor(std).view(1, 3, 1, 1)
        missing = self.missing(view)
        for start in range(0, len(missing), batch_size):
            rows = missing[start : start + batch_size]
            images = torch.stack([self._view(self.rows(view)[row], view) for row in rows])
            scales = make_scales((images - centre) / spread, self.key.settings.subsampling)
            for level, scale in enumerate(scales):
                with torch.inference_mode():
                    maps = extract(scale.contiguous().to(device)).float().cpu()
                self._write(view, f"features{level}", rows, maps)
                if level:
                    self._write(view, f"images{level}", rows, scale)
            self._mark(view, rows)
            on_rows(len(rows))

    def batch(self, samples: Sequence[tuple[int, int]], device: torch.device | str = "cpu") -> Batch:
        """Load some samples given as (view, row), as float32."""

        def gather(name: str) -> Tensor:
            values = np.stack([self._map(view, name)[row] for view, row in samples])
            return torch.from_numpy(values).to(device).float()

        return Batch(
            images=(gather("images1"), gather("images2")),
            features=(gather("features0"), gather("features1"), gather("features2")),
        )

    def samples(self, views: int) -> list[tuple[int, int]]:
        """All training samples of the first ``views`` views as (view, row)."""
        kept = set(self.train)
        return [(v, row) for v in range(views) for row, index in enumerate(self.rows(v)) if index in kept]

    def held_out_samples(self) -> list[tuple[int, int]]:
        """The validation samples."""
        kept = set(self.held_out)
        return [(0, row) for row, index in enumerate(self.rows(0)) if index in kept]

    def _view(self, image_index: int, view: int) -> Tensor:
        path = self.files[image_index]
        pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if pixels is None:
            raise MediaError(f"{path}: cannot be read as an image")
        settings = self.key.settings
        held_out = view == 0 and image_index in self.held_out
        choice = Augmentation() if held_out else draw_augmentation(settings, image_index, view)
        return make_view(np.ascontiguousarray(pixels[..., ::-1], dtype=np.uint8), choice, settings.size_px)

    def _path(self, view: int, name: str) -> Path:
        return self.folder / f"view{view}" / name

    def _done(self, view: int) -> npt.NDArray[np.bool_]:
        path = self._path(view, "done.npy")
        return np.load(path) if path.exists() else np.zeros(len(self.rows(view)), np.bool_)

    def _mark(self, view: int, rows: Sequence[int]) -> None:
        for (of_view, _), values in self._maps.items():
            if of_view == view and isinstance(values, np.memmap):
                values.flush()
        done = self._done(view)
        done[list(rows)] = True
        partial = self._path(view, "done.partial.npy")
        np.save(partial, done)
        os.replace(partial, self._path(view, "done.npy"))

    def _write(self, view: int, name: str, rows: Sequence[int], values: Tensor) -> None:
        self._map(view, name, tuple(values.shape[1:]))[list(rows)] = values.numpy().astype(np.float16)

    def _map(self, view: int, name: str, shape: tuple[int, ...] | None = None) -> npt.NDArray[np.float16]:
        if (view, name) not in self._maps:
            path = self._path(view, f"{name}.npy")
            if not path.exists() and shape is not None:
                path.parent.mkdir(exist_ok=True)
                full = (len(self.rows(view)), *shape)
                self._maps[view, name] = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=full)
            else:
                mode: Literal["r+", "r"] = "r" if shape is None else "r+"
                self._maps[view, name] = np.lib.format.open_memmap(path, mode=mode)
        return self._maps[view, name]
