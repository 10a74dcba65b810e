"""Features of images of any size, and the output of the commands on sets of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from pipeline.core.config import load_config
from pipeline.core.errors import MediaError, OutputError
from pipeline.core.files import IMAGE_SUFFIXES, list_images
from pipeline.core.records import Features, Frame, PatchGrid
from pipeline.formats.image_folder import load_image
from stages.extract import ExtractConfig, Extractor

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class DescribedImage:
    """An image and its features.

    Attributes:
        name: File name without suffix.
        image: uint8 ``(H, W, 3)``.
        features: On the CPU.
    """

    name: str
    image: Image
    features: Features

    @property
    def grid(self) -> PatchGrid:
        """Where the cells lie on the image."""
        return self.features.grid

    @property
    def descriptors(self) -> npt.NDArray[np.float32]:
        """float32 ``(C, h, w)``."""
        return np.asarray(self.features.data.numpy(), np.float32)

    @property
    def rows(self) -> npt.NDArray[np.float32]:
        """The descriptors as float32 ``(h * w, C)``, row-major."""
        maps = self.descriptors
        return np.ascontiguousarray(maps.reshape(maps.shape[0], -1).T)

    def extra(self, facet: str) -> npt.NDArray[np.float32]:
        """A further facet, float32 ``(C, h, w)``, by the name it was asked for."""
        return np.asarray(self.features.extra[facet].numpy(), np.float32)

    @property
    def saliency(self) -> npt.NDArray[np.float32]:
        """float32 ``(h, w)``; zeros where the backbone gives none."""
        if self.features.saliency is None:
            return np.zeros(self.grid.grid_hw, np.float32)
        return np.asarray(self.features.saliency.numpy(), np.float32)


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Image files, those of a folder in natural order.

    Raises:
        MediaError: A path is missing, or a folder holds no images.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found.extend(list_images(path))
        elif not path.is_file():
            raise MediaError(f"{path}: no such image or folder of images")
        elif path.suffix.lower() not in IMAGE_SUFFIXES:
            raise MediaError(f"{path}: is not an image ({', '.join(sorted(IMAGE_SUFFIXES))})")
        else:
            found.append(path)
    return found


def describe(images: Sequence[tuple[str, Image]], extractor: Extractor) -> list[DescribedImage]:
    """Features of named images, in order."""
    frames = (Frame(image, index, 0.0) for index, (_, image) in enumerate(images))
    described = []
    for (name, image), packet in zip(images, extractor(frames), strict=True):
        assert packet.features is not None
        features = packet.features
        features = replace(
            features,
            data=features.data.float().cpu(),
            saliency=None if features.saliency is None else features.saliency.float().cpu(),
            cls=None if features.cls is None else features.cls.float().cpu(),
            extra={facet: values.float().cpu() for facet, values in features.extra.items()},
        )
        described.append(DescribedImage(name, image, features))
    return described


def load_named(files: Sequence[Path]) -> list[tuple[str, Image]]:
    """Images with names that are unique, so that results do not overwrite one another."""
    names: dict[str, int] = {}
    loaded = []
    for file in files:
        count = names.get(file.stem, 0)
        names[file.stem] = count + 1
        loaded.append((file.stem if count == 0 else f"{file.stem}_{count + 1}", load_image(file)))
    return loaded


def claim_folder(output: Path, *, overwrite: bool) -> None:
    """Make the output folder.

    Raises:
        OutputError: It exists and holds something, and ``overwrite`` is not set; or it is a file.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: is a file; --output names a folder")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise OutputError(f"{output}: exists and is not empty; use --overwrite or another folder")
    output.mkdir(parents=True, exist_ok=True)


def write_picture(path: Path, image: Image) -> None:
    """Write an RGB picture as PNG."""
    Pillow.fromarray(image).save(path)


def contact_sheet(pictures: Sequence[Image], *, columns: int = 4, height_px: int = 240) -> Image:
    """Pictures side by side at one height, rows padded with white."""
    scaled = [cv2.resize(p, (max(1, p.shape[1] * height_px // p.shape[0]), height_px)) for p in pictures]
    rows = [np.concatenate(scaled[start : start + columns], axis=1) for start in range(0, len(scaled), columns)]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(r, ((0, 4), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
    return np.asarray(np.concatenate(padded), np.uint8)


def image_extractor(options: Mapping[str, Any], *, origin: str) -> Extractor:
    """An extractor for single images, in fp32 and without LiFT unless the options say otherwise.

    Which of two cells is the nearer one is often decided by a difference that bf16 does not resolve, and for a few
    images speed matters less.

    Raises:
        ConfigError: An option that does not exist or a wrong value; ``origin`` is named in the message.
    """
    return Extractor(load_config(ExtractConfig, {"precision": "fp32", "lift": "none", **options}, origin=origin))
