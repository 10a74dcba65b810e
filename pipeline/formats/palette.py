"""Indexed PNG masks with the DAVIS palette: a pixel's value is an object id, the color is for display.

The table is that of DAVIS: for ids up to 21 the colors of PASCAL VOC, made from the bits of the id, but with 191
instead of 192; from 22 on gray with the value of the id.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.core.errors import MaskError
from pipeline.core.files import write_bytes_whole
from pipeline.formats.image_folder import reading_image

_LAST_COLOR = 21
_COMPRESSION = 3
"""zlib's level: a third of the time of Pillow's 6, for files a quarter larger."""
_ONE_CHANNEL_MODES = {"P", "L", "1"}
_EXACT_FORMATS = {"PNG", "BMP", "GIF", "PPM", "TIFF"}


def davis_palette() -> npt.NDArray[np.uint8]:
    """The colors of all 256 ids.

    Returns:
        uint8 ``(256, 3)``, RGB.

    >>> davis_palette()[[0, 1, 2, 8, 22]].tolist()
    [[0, 0, 0], [128, 0, 0], [0, 128, 0], [64, 0, 0], [22, 22, 22]]
    """
    table = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    for index in range(_LAST_COLOR + 1):
        for channel in range(3):
            # Bits 0, 1 and 2 of the id set the top bit of red, green and blue, bits 3 to 5 the next one.
            value = sum(((index >> (3 * level + channel)) & 1) << (7 - level) for level in range(3))
            table[index, channel] = min(value, 191) if value == 192 else value
    return table


@cache
def _palette_bytes() -> bytes:
    return davis_palette().tobytes()


def encode_indexed_png(mask: npt.NDArray[np.uint8]) -> bytes:
    """An index mask as the content of an 8-bit palette PNG.

    Args:
        mask: uint8 ``(H, W)`` of object ids.

    Raises:
        ValueError: ``mask`` is not uint8 ``(H, W)``.
    """
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise ValueError(f"an index mask is uint8 (H, W), got {mask.dtype} {mask.shape}")
    image = Image.fromarray(mask)
    image.putpalette(_palette_bytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=_COMPRESSION)
    return buffer.getvalue()


def write_indexed_png(path: Path, mask: npt.NDArray[np.uint8]) -> None:
    """Write an index mask as an 8-bit palette PNG, whole or not at all; see :func:`encode_indexed_png`."""
    write_bytes_whole(path, encode_indexed_png(mask))


def read_indexed_png(path: Path) -> npt.NDArray[np.uint8]:
    """The values of an 8-bit one-channel mask, exactly as in the file.

    Returns:
        uint8 ``(H, W)``; a bilevel file gives 0 and 255.

    Raises:
        MaskError: The file is missing, is not an image, or has colors instead of indices.
    """
    with _opened(path) as image:
        return np.array(image.convert("L") if image.mode == "1" else image, dtype=np.uint8)  # a writable copy


def indexed_png_hw(path: Path) -> tuple[int, int]:
    """Height and width of a mask, from its header.

    Raises:
        MaskError: As for :func:`read_indexed_png`.
    """
    with _opened(path) as image:
        return image.height, image.width


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An open one-channel mask whose values are object ids."""
    if not path.is_file():
        raise MaskError(f"{path}: no such mask")
    with reading_image(path, MaskError, "a PNG mask"), Image.open(path) as image:
        if image.format not in _EXACT_FORMATS:
            raise MaskError(
                f"{path}: is a {image.format} file, whose compression changes object numbers; save masks as PNG"
            )
        if image.mode not in _ONE_CHANNEL_MODES:
            raise MaskError(
                f"{path}: the mask is a {image.mode} image; it must be indexed (palette) or 8-bit gray, "
                "with object numbers as pixel values"
            )
        yield image
