"""A folder of images as frames: an image that cannot be read is a missing frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import MediaError
from pipeline.core.files import list_images
from pipeline.core.records import VideoInfo
from pipeline.formats.image_folder import load_image


@dataclass(frozen=True, slots=True)
class ReadImage:
    """One file of the folder.

    Attributes:
        index: 0-based index in natural order of the names.
        image: uint8 ``(H, W, 3)``, or None if it cannot be read.
        problem: Why not; empty if it can.
    """

    index: int
    image: npt.NDArray[np.uint8] | None
    problem: str = ""


def read_images(info: VideoInfo, first_index: int) -> Iterator[ReadImage]:
    """The images of a folder from ``first_index`` on."""
    for index, path in enumerate(list_images(info.path)):
        if index >= first_index:
            yield _read(index, path, info)


def _read(index: int, path: Path, info: VideoInfo) -> ReadImage:
    try:
        image = load_image(path)
    except MediaError as error:
        return ReadImage(index, None, str(error))
    if image.shape[:2] != info.image_hw:
        return ReadImage(index, None, f"{path}: is {image.shape[1]}x{image.shape[0]}, unlike the others")
    return ReadImage(index, image)
