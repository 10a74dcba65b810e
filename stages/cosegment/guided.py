"""The guided filter: soft cell maps brought to the edges of the frame.

Source: He, Sun, Tang 2010, "Guided Image Filtering" (eq. 14-16 with a color guide), in the fast form of He and
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
    large_side_px: int = 540,
) -> FloatArray:
    """Filter soft maps so that their edges follow the guide's.

    Args:
        guide: uint8 ``(H, W, 3)``.
        values: float32 ``(K, h, w)`` over the same area, any resolution.
        radius_px: Half the window's side, in pixels of the guide.
        eps: Regularization, for a guide in [0, 1]; larger is smoother.
        small_side_px: Short side of the copy the coefficients are computed on.
        large_side_px: Short side the result has at most; what lies beyond is left to interpolation.

    Returns:
        float32 ``(K, H', W')``, the guide's size or, where its short side is longer, that.
    """
    shrink = min(1.0, large_side_px / min(guide.shape[:2]))
    height, width = (max(1, round(side * shrink)) for side in guide.shape[:2])
    scale = min(1.0, small_side_px / min(guide.shape[:2]))
    small = (max(1, round(guide.shape[1] * scale)), max(1, round(guide.shape[0] * scale)))
    image = cv2.resize(guide, small, interpolation=cv2.INTER_AREA).astype(np.float32) / 255.0
    side = 2 * max(1, round(radius_px * scale)) + 1

    def mean(channel: FloatArray) -> FloatArray:
        return np.asarray(cv2.blur(channel, (side, side), borderType=cv2.BORDER_REFLECT), np.float32)

    average = mean(image)
    inverse = _inverse_covariance(image, average, mean, eps)
    size = (width, height)
    large = cv2.resize(guide, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255.0
    filtered = np.empty((len(values), height, width), np.float32)
    for index, soft in enumerate(values):
        value = cv2.resize(np.ascontiguousarray(soft, np.float32), small, interpolation=cv2.INTER_LINEAR)
        value_mean = mean(value)
        covariance = mean(image * value[..., None]) - average * value_mean[..., None]
        slope = np.einsum("hwij,hwj->hwi", inverse, covariance)
        offset = value_mean - np.einsum("hwi,hwi->hw", slope, average)
        line = mean(np.concatenate([slope, offset[..., None]], axis=-1).astype(np.float32))
        line = cv2.resize(line, size, interpolation=cv2.INTER_LINEAR)
        filtered[index] = np.einsum("hwi,hwi->hw", line[..., :3], large) + line[..., 3]
    return filtered


def _inverse_covariance(
    image: FloatArray, average: FloatArray, mean: Callable[[FloatArray], FloatArray], eps: float
) -> FloatArray:
    """Inverse of the guide's 3 x 3 color covariance in every window, ``(h, w, 3, 3)``."""

    def moment(a: int, b: int) -> FloatArray:
        second = mean(image[..., a] * image[..., b]) - average[..., a] * average[..., b]
        return second + np.float32(eps) if a == b else second

    rr, rg, rb, gg, gb, bb = (moment(a, b) for a, b in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)))
    # Cofactors of the symmetric matrix; far faster than a general inverse of a hundred thousand of them.
    c00, c01, c02 = gg * bb - gb * gb, rb * gb - rg * bb, rg * gb - rb * gg
    c11, c12, c22 = rr * bb - rb * rb, rg * rb - rr * gb, rr * gg - rg * rg
    determinant = np.maximum(rr * c00 + rg * c01 + rb * c02, 1e-20)
    rows = [c00, c01, c02, c01, c11, c12, c02, c12, c22]
    return np.asarray(np.stack(rows, axis=-1) / determinant[..., None], np.float32).reshape(*image.shape[:2], 3, 3)
