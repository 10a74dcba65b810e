"""The guided filter: soft cell maps brought to the edges of the frame.

Source: He, Sun, Tang 2010, "Guided Image Filtering" (eq. 14-16 with a colour guide), in the fast form of He and
Sun 2015 (https://arxiv.org/abs/1505.00996): the linear coefficients are found on a small copy of the frame and
applied to the large one.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


def guided_filter(
    guide: npt.NDArray[np.uint8],
    values: FloatArray,
    *,
    radius_px: int,
    eps: float = 1e-4,
    small_side_px: int = 240,
) -> FloatArray:
    """Filter soft maps so that their edges follow the guide's.

    Args:
        guide: uint8 ``(H, W, 3)``.
        values: float32 ``(K, h, w)`` over the same area, any resolution.
        radius_px: Half the window's side, in pixels of the guide.
        eps: Regularisation, for a guide in [0, 1]; larger is smoother.
        small_side_px: Short side of the copy the coefficients are computed on.

    Returns:
        float32 ``(K, H, W)``.
    """
    height, width = guide.shape[:2]
    scale = min(1.0, small_side_px / min(height, width))
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = cv2.resize(guide, small, interpolation=cv2.INTER_AREA).astype(np.float32) / 255.0
    side = 2 * max(1, round(radius_px * scale)) + 1

    def mean(channel: FloatArray) -> FloatArray:
        return np.asarray(cv2.blur(channel, (side, side), borderType=cv2.BORDER_REFLECT), np.float32)

    average = mean(image)
    inverse = _inverse_covariance(image, average, mean, eps)
    large = guide.astype(np.float32) / 255.0
    filtered = np.empty((len(values), height, width), np.float32)
    for index, soft in enumerate(values):
        value = cv2.resize(np.ascontiguousarray(soft, np.float32), small, interpolation=cv2.INTER_LINEAR)
        value_mean = mean(value)
        covariance = mean(image * value[..., None]) - average * value_mean[..., None]
        slope = np.einsum("hwij,hwj->hwi", inverse, covariance)
        offset = value_mean - (slope * average).sum(axis=-1)
        line = mean(np.concatenate([slope, offset[..., None]], axis=-1).astype(np.float32))
        line = cv2.resize(line, (width, height), interpolation=cv2.INTER_LINEAR)
        filtered[index] = (line[..., :3] * large).sum(axis=-1) + line[..., 3]
    return filtered


def _inverse_covariance(
    image: FloatArray, average: FloatArray, mean: Callable[[FloatArray], FloatArray], eps: float
) -> FloatArray:
    """Inverse of the guide's 3 x 3 colour covariance in every window, ``(h, w, 3, 3)``."""
    products = image[..., :, None] * image[..., None, :]
    moments = mean(products.reshape(*image.shape[:2], 9)).reshape(*image.shape[:2], 3, 3)
    covariance = moments - average[..., :, None] * average[..., None, :]
    return np.linalg.inv(covariance + eps * np.eye(3, dtype=np.float32)).astype(np.float32)
