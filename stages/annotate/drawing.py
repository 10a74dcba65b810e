"""Pure drawing on RGB frames: colors by id, tinted regions, outlines. Boxes and text are supervision's."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.core.resizing import id_areas

Image = npt.NDArray[np.uint8]


def tint(image: Image, index_mask: Image, colors: Image, opacity: float) -> Image:
    """Blend the color of each pixel's id into the image; pixels of id 0 stay as they are.

    Args:
        image: uint8 ``(H, W, 3)``.
        index_mask: uint8 ``(H, W)``.
        colors: uint8 ``(256, 3)``, row = id.
        opacity: In [0, 1].

    Returns:
        A new uint8 ``(H, W, 3)``.
    """
    result = image.copy()
    left, top, width, height = cv2.boundingRect(index_mask)
    if not width:
        return result
    region = np.s_[top : top + height, left : left + width]
    ids, pixels = index_mask[region], result[region]
    blended = cv2.addWeighted(pixels, 1.0 - opacity, _colored(ids, colors), opacity, 0.0)
    # Written through a contiguous copy: OpenCV does not write into a slice of an array.
    result[region] = cv2.copyTo(blended, ids, pixels.copy())
    return result


def outline(image: Image, index_mask: Image, colors: Image, thickness_px: int) -> None:
    """Draw each id's contour in its color, with a dark rim so that it shows on any background; in place."""
    for object_id in np.flatnonzero(id_areas(index_mask)[1:]) + 1:
        region = cv2.compare(index_mask, int(object_id), cv2.CMP_EQ)
        contours, _ = cv2.findContours(region, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(image, contours, -1, (20, 20, 20), thickness_px + 2, cv2.LINE_AA)
        color = tuple(int(c) for c in colors[object_id])
        cv2.drawContours(image, contours, -1, color, thickness_px, cv2.LINE_AA)


def _colored(ids: Image, colors: Image) -> npt.NDArray[np.uint8]:
    """The color of each id, uint8 ``(H, W, 3)``: ten times faster than indexing the table with the mask."""
    return np.asarray(cv2.applyColorMap(np.ascontiguousarray(ids), colors.reshape(256, 1, 3)), np.uint8)


def caption(image: Image, text: str) -> None:
    """Write ``text`` into the upper left corner on a dark strip, sized by the image; in place."""
    height = image.shape[0]
    scale = max(0.4, height / 600)
    thickness = max(1, round(scale * 1.6))
    (text_width, text_height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    pad = max(3, text_height // 3)
    corner = (text_width + 2 * pad, text_height + baseline + pad)
    cv2.rectangle(image, (0, 0), corner, (20, 20, 20), cv2.FILLED)
    origin = (pad, text_height + pad // 2 + 1)
    white = (255, 255, 255)
    cv2.putText(image, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, white, thickness, cv2.LINE_AA)


def fit_panel(image: Image, size_hw: tuple[int, int]) -> Image:
    """``image`` scaled into ``size_hw`` with its proportions kept, centered on black."""
    scale = min(size_hw[0] / image.shape[0], size_hw[1] / image.shape[1])
    height, width = max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))
    panel = np.zeros((*size_hw, 3), np.uint8)
    top, left = (size_hw[0] - height) // 2, (size_hw[1] - width) // 2
    panel[top : top + height, left : left + width] = cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA
    )
    return panel
