"""Training data for LiFT: the frozen ViT's features of views of images, computed once.

Suri et al., LiFT, ECCV 2024, section 3.2: a view is used at 448, 224 and 112 px; the features at one scale are
the target for the features at the next smaller one.

A cache is a folder with one sub-folder per view. Each holds, as float16 memory maps with one row per image, the
normalized images of the input scales and the features of all scales, and a list of the finished rows, so that an
interrupted run continues where it stopped. ``manifest.json`` says what it was made from; another backbone, facet,
image list, seed or subsampling has another folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.core.errors import MediaError, OutputError
from pipeline.core.files import whole_file
from pipeline.formats.image_folder import load_image
from pipeline.training.lift_views import Augmentation, ViewSettings, draw_augmentation, make_scales, make_view

Extract = Callable[[Tensor], Tensor]
"""``(B, 3, S, S)`` normalized images to ``(B, C, h, w)`` features."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of views at all scales, largest first.

    Attributes:
        images: Normalized ``(B, 3, S / 2, S / 2)`` and ``(B, 3, S / 4, S / 4)``.
        features: ``(B, C, h, w)`` of the three scales.
    """

    images: tuple[Tensor, Tensor]
    features: tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class CacheKey:
    """Everything the cached values depend on.

    Attributes:
        backbone: Name.
        facet: Its facet spec.
        weights_sha256: Hash of the backbone's weights.
        files: Hash of the names and sizes of the images.
        held_out: Number of validation images.
        settings: Settings of the views.
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
    """A hash of names and sizes."""
    text = "\n".join(f"{p.name} {p.stat().st_size}" for p in files)
    return hashlib.sha256(text.encode()).hexdigest()


def split_held_out(num_images: int, held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """Indices for training and for validation, the same for the same seed.

    Raises:
        MediaError: No image would be left for training.
    """
    if num_images - held_out < 1:
        raise MediaError(
            f"{num_images} images are too few for {held_out} validation images and at least one for training"
        )
    order = np.random.default_rng([seed, num_images]).permutation(num_images).tolist()
    return sorted(order[held_out:]), sorted(order[:held_out])


@dataclass
class FeatureCache:
    """One folder of cached views.

    Attributes:
        folder: The folder.
        key: What it was made from.
        files: The images.
        train: Indices of the training images.
        held_out: Indices of the validation images; only view 0, without augmentation.
    """

    folder: Path
    key: CacheKey
    files: Sequence[Path]
    train: list[int]
    held_out: list[int]
    _maps: dict[tuple[int, str], npt.NDArray[np.float16]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, root: Path, key: CacheKey, files: Sequence[Path]) -> FeatureCache:
        """The cache for ``key`` below ``root``, created where it does not exist.

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
        """Rows of a view that have not been computed."""
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
            mean: Per-channel mean of its input normalization.
            std: Per-channel standard deviation.
            batch_size: Views per forward.
            device: Device of the images for ``extract``.
            on_rows: Called with the number of rows written, for progress.
        """
        center = torch.tensor(mean).view(1, 3, 1, 1)
        spread = torch.tensor(std).view(1, 3, 1, 1)
        missing = self.missing(view)
        for start in range(0, len(missing), batch_size):
            rows = missing[start : start + batch_size]
            images = torch.stack([self._view(self.rows(view)[row], view) for row in rows])
            scales = make_scales((images - center) / spread, self.key.settings.subsampling)
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
        settings = self.key.settings
        held_out = view == 0 and image_index in self.held_out
        choice = Augmentation() if held_out else draw_augmentation(settings, image_index, view)
        return make_view(load_image(path), choice, settings.size_px)

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
        with whole_file(self._path(view, "done.npy")) as partial, partial.open("wb") as file:
            np.save(file, done)

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
