"""Sizes and resizing of frames for a ViT, with the methods the references use.

The methods differ when they shrink an image: ``area`` and those with antialiasing average over all pixels;
``cv2_bilinear`` reads four pixels and skips the rest, as DINO's DAVIS evaluation does.
"""

from __future__ import annotations

import math
from typing import Final, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.core.errors import ConfigError

ResizeMethod = Literal["area", "bilinear_antialias", "cv2_bilinear", "bicubic", "lanczos"]

_PILLOW: Final = {
    "bilinear_antialias": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def model_input_size(
    image_hw: tuple[int, int], short_side: int | None, patch_px: int, long_side_multiple: int | None = None
) -> tuple[int, int]:
    """The size a frame is resized to; keeps its proportions as far as whole patches allow.

    The short side becomes ``short_side`` rounded down to a multiple of the patch, the long side the largest
    multiple that does not exceed its proportional length. With ``long_side_multiple`` the short side is used
    unchanged and the long side is rounded down to that multiple: DINO's DAVIS evaluation uses 480 and 64.

    Args:
        image_hw: The frame's size in pixels.
        short_side: Length of the short side; None keeps the frame's own.
        patch_px: Side length of a patch.
        long_side_multiple: See above.

    Returns:
        Height and width.

    >>> model_input_size((480, 854), 476, 14)
    (476, 840)
    >>> model_input_size((854, 480), 480, 16, 64)
    (832, 480)

    Raises:
        ConfigError: The result would be smaller than one patch.
    """
    short, long = sorted(image_hw)
    target = short if short_side is None else short_side
    if long_side_multiple is None:
        target = target // patch_px * patch_px
        multiple = patch_px
    else:
        multiple = long_side_multiple
    scaled = long * target // short // multiple * multiple
    if target < patch_px or scaled < patch_px:
        raise ConfigError(
            f"a frame of {image_hw[0]} x {image_hw[1]} px with short_side {short_side} leaves no patch of "
            f"{patch_px} px; set short_side to at least {patch_px}"
        )
    return (target, scaled) if image_hw[0] <= image_hw[1] else (scaled, target)


def count_cells(size_hw: tuple[int, int], patch_px: int, stride_px: int) -> int:
    """Number of cells of the grid of an input of ``size_hw`` px.

    >>> count_cells((28, 42), 14, 14), count_cells((28, 42), 14, 7)
    (6, 15)
    """
    rows, columns = (1 + (side - patch_px) // stride_px for side in size_hw)
    return rows * columns


def bound_input_size(size_hw: tuple[int, int], patch_px: int, stride_px: int, max_cells: int) -> tuple[int, int]:
    """``size_hw``, or a smaller size of nearly the same proportions with at most ``max_cells`` cells.

    The smaller size is a multiple of the patch and at least one patch per side; only where one side is down to
    one patch are the proportions given up.

    Args:
        size_hw: Height and width of the model's input in pixels, each at least one patch.
        patch_px: Side length of a patch.
        stride_px: Distance of neighboring cells in pixels of the input.
        max_cells: The bound, at least 1.

    Returns:
        Height and width.

    >>> bound_input_size((280, 490), 14, 14, 16384)
    (280, 490)
    >>> bound_input_size((280, 112000), 14, 14, 16384)
    (84, 33600)
    >>> bound_input_size((14, 280000), 14, 14, 16384)
    (14, 229376)
    """
    cells = count_cells(size_hw, patch_px, stride_px)
    if cells <= max_cells:
        return size_hw
    short, long = sorted(size_hw)
    scale = math.sqrt(max_cells / cells)
    new_short = max(patch_px, int(short * scale) // patch_px * patch_px)
    cells_across = 1 + (new_short - patch_px) // stride_px
    longest = patch_px + (max(1, max_cells // cells_across) - 1) * stride_px
    new_long = max(patch_px, min(round(long * new_short / short), longest) // patch_px * patch_px)
    return (new_short, new_long) if size_hw[0] <= size_hw[1] else (new_long, new_short)


def resize_image(
    image: npt.NDArray[np.uint8], size_hw: tuple[int, int], method: ResizeMethod
) -> npt.NDArray[np.uint8]:
    """Resize uint8 RGB ``(H, W, 3)`` to ``(*size_hw, 3)``.

    ``area`` falls back to plain bilinear along an axis that grows, as OpenCV does.
    """
    if image.shape[:2] == size_hw:
        return image
    width_height = (size_hw[1], size_hw[0])
    if method in _PILLOW:
        return np.asarray(Image.fromarray(image).resize(width_height, _PILLOW[method]))
    if method not in get_args(ResizeMethod):
        raise ConfigError(f"resize method '{method}' does not exist; valid: {', '.join(get_args(ResizeMethod))}")
    flag = cv2.INTER_AREA if method == "area" else cv2.INTER_LINEAR
    resized: npt.NDArray[np.uint8] = cv2.resize(image, width_height, interpolation=flag)
    return resized
