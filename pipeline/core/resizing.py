"""Shrinking pictures to working sizes, and counting the ids of a mask."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

_LEAST_RATIO = 1.5


def shrunk(image: npt.NDArray[np.uint8], size_hw: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A picture averaged down to a working size, for guides and optical flow.

    A whole factor that leaves at least 1.5 times the size is taken off first: OpenCV averages whole blocks ten
    times as fast as fractions of pixels.

    Args:
        image: uint8 ``(H, W)`` or ``(H, W, 3)``.
        size_hw: The size wanted; a side that is longer than the picture's is interpolated.

    >>> shrunk(np.full((720, 1280, 3), 7, np.uint8), (140, 245)).shape
    (140, 245, 3)
    """
    height, width = image.shape[:2]
    most = int(min(height / size_hw[0], width / size_hw[1]) / _LEAST_RATIO)
    factor = max((f for f in range(2, most + 1) if height % f == 0 and width % f == 0), default=1)
    if factor > 1:
        image = np.asarray(cv2.resize(image, (width // factor, height // factor), interpolation=cv2.INTER_AREA))
    return np.asarray(cv2.resize(image, size_hw[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def shrunk_by_whole_factor(image: npt.NDArray[np.uint8], least_short_side: int) -> npt.NDArray[np.uint8]:
    """A picture averaged down by the largest whole factor that leaves ``least_short_side`` pixels.

    >>> shrunk_by_whole_factor(np.zeros((720, 1280, 3), np.uint8), 360).shape
    (360, 640, 3)
    >>> shrunk_by_whole_factor(np.zeros((480, 854, 3), np.uint8), 360).shape
    (480, 854, 3)
    """
    factor = max(1, min(image.shape[:2]) // least_short_side)
    size_hw = (image.shape[0] // factor, image.shape[1] // factor)
    return image if factor == 1 else np.asarray(cv2.resize(image, size_hw[::-1], interpolation=cv2.INTER_AREA))


def id_areas(index_mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The number of pixels of each id, int64 ``(256,)``; exact for masks of up to 2**24 pixels per id.

    >>> id_areas(np.array([[0, 3], [3, 3]], np.uint8))[:4].tolist()
    [1, 0, 0, 3]
    """
    counts = cv2.calcHist([index_mask], [0], None, [256], [0, 256])
    return np.asarray(counts.ravel(), np.int64)
