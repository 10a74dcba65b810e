"""A folder of images as a video: natural order of names, one size, a frame rate given by the user."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.core.errors import MediaError
from pipeline.core.files import list_images
from pipeline.core.records import VideoInfo

_EXIF_ORIENTATION = 0x0112
_SWAPPING_ORIENTATIONS = frozenset({5, 6, 7, 8})


def load_image(path: Path) -> npt.NDArray[np.uint8]:
    """An image file as uint8 RGB ``(H, W, 3)``, upright, in an array of its own.

    Raises:
        MediaError: The file is not an image, or is truncated.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I") or upright.mode == "F":
                return _sixteen_bit_to_rgb(upright)
            return np.array(upright.convert("RGB"))  # a copy: torch warns about read-only arrays
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise MediaError(f"{path}: cannot be read as an image ({error})") from error


def probe_folder(folder: Path, frame_rate: Fraction) -> VideoInfo:
    """Facts about a folder of images; reads all headers, so that a different size is an error before the run.

    Raises:
        MediaError: No images, a file that is not an image, or different sizes (the message names the first one).
    """
    files = list_images(folder)
    sizes = ((path, _upright_size(path)) for path in files)
    first, (width, height) = next(sizes)
    for path, size in sizes:
        if size != (width, height):
            raise MediaError(
                f"{path}: is {size[0]}x{size[1]}, but {first.name} is {width}x{height}; "
                "all images of a folder must have the same size"
            )
    return VideoInfo(
        path=folder,
        height=height,
        width=width,
        frame_rate=frame_rate,
        num_frames=len(files),
        time_base=1 / frame_rate,
        frame_names=tuple(path.stem for path in files),
    )


def _upright_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            swapped = image.getexif().get(_EXIF_ORIENTATION) in _SWAPPING_ORIENTATIONS
            return (image.height, image.width) if swapped else image.size
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise MediaError(f"{path}: cannot be read as an image ({error})") from error


def _sixteen_bit_to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Gray images of more than 8 bits scaled to 8; Pillow would clip them at 255."""
    values = np.asarray(image).astype(np.float64)
    top = 65535.0 if values.max(initial=0) > 255 else 255.0
    gray = np.clip(values / top * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)
