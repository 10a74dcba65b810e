"""Image files, and a folder of them as a video: natural order of names, one size, a given frame rate."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from pipeline.core.errors import InputError, MediaError
from pipeline.core.files import list_images
from pipeline.core.records import VideoInfo

_EXIF_ORIENTATION = 0x0112
_SWAPPING_ORIENTATIONS = frozenset({5, 6, 7, 8})
_LARGEST_16_BIT = 65535
IMAGE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow raises for files that are damaged or not images."""


@contextmanager
def reading_image(path: Path, error_type: type[InputError], what: str) -> Iterator[None]:
    """Turn Pillow's errors into one that names the file.

    Args:
        path: The file that is read in the block.
        error_type: The error to raise.
        what: What the file should be, for example "an image".
    """
    try:
        yield
    except InputError:
        raise
    except IMAGE_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise error_type(f"{path}: cannot be read as {what} ({reason})") from error


def load_image(path: Path) -> npt.NDArray[np.uint8]:
    """An image file as uint8 RGB ``(H, W, 3)``, upright, in an array of its own.

    Gray images of 16 bits are scaled to 8; floating-point images are refused, because their range is unknown.

    Raises:
        MediaError: The file is not an image, is truncated, too large, or has an unsupported type of values.
    """
    with reading_image(path, MediaError, "an image"), Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "F":
            raise MediaError(f"{path}: floating-point images have no known range; convert it to 8 or 16 bits")
        if upright.mode.startswith("I"):
            return _sixteen_bit_to_rgb(path, upright)
        return np.array(upright.convert("RGB"))  # a copy: torch warns about read-only arrays


def probe_folder(folder: Path, frame_rate: Fraction) -> VideoInfo:
    """Facts about a folder of images; reads all headers, so that a different size is an error before the run.

    Images that cannot be read are tolerated here as long as there is one that can: they are missing frames.

    Raises:
        MediaError: No images, none that can be read, different sizes (the message names the first one), or two
            images with the same name but for the suffix, whose results would share a name.
    """
    files = list_images(folder)
    _check_names(files)
    first, (width, height) = _first_readable(files)
    for path in files:
        size = _size_or_none(path)
        if size not in (None, (width, height)):
            assert size is not None
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


def _check_names(files: Iterable[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in files:
        other = seen.setdefault(path.stem, path)
        if other is not path:
            raise MediaError(f"{path.parent}: {other.name} and {path.name} would share their results; rename one")


def _first_readable(files: list[Path]) -> tuple[Path, tuple[int, int]]:
    problem: MediaError | None = None
    for path in files:
        try:
            return path, upright_size(path)
        except MediaError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _size_or_none(path: Path) -> tuple[int, int] | None:
    try:
        return upright_size(path)
    except MediaError:
        return None


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height of an image after rotation, from its header.

    Raises:
        MediaError: The file is not an image.
    """
    with reading_image(path, MediaError, "an image"), Image.open(path) as image:
        swapped = image.getexif().get(_EXIF_ORIENTATION) in _SWAPPING_ORIENTATIONS
        return (image.height, image.width) if swapped else image.size


def _sixteen_bit_to_rgb(path: Path, image: Image.Image) -> npt.NDArray[np.uint8]:
    """Gray images of 16 bits scaled to 8; Pillow would clip them at 255."""
    values = np.asarray(image).astype(np.float64)
    if values.size and not 0 <= values.min() <= values.max() <= _LARGEST_16_BIT:
        raise MediaError(f"{path}: has gray values beyond 16 bits; convert it to 8 or 16 bits")
    gray = (values / _LARGEST_16_BIT * 255.0 + 0.5).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)
