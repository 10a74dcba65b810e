"""Views of a picture that show the same things elsewhere: mirrored, and its middle enlarged."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

ByteImage = npt.NDArray[np.uint8]


def mirrored(image: ByteImage) -> ByteImage:
    """The picture mirrored left to right; its own inverse."""
    return np.ascontiguousarray(image[:, ::-1])


def central_crop(image: ByteImage) -> ByteImage:
    """The central two thirds of each side, ``(2 * H // 3, 2 * W // 3)`` or with channels."""
    height, width = image.shape[:2]
    top, left = height // 6, width // 6
    return image[top : top + 2 * height // 3, left : left + 2 * width // 3]


def enlarged(image: ByteImage) -> ByteImage:
    """:func:`central_crop` at the size of the picture."""
    size = (image.shape[1], image.shape[0])
    return np.asarray(cv2.resize(central_crop(image), size, interpolation=cv2.INTER_CUBIC), np.uint8)
