"""Masks as one polygon each, for formats that know no masks."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Polygon = npt.NDArray[np.int32]


def mask_polygon(mask: npt.NDArray[np.bool_]) -> Polygon:
    """One closed polygon around all pieces of a mask.

    Corners are pixels (x, y) of the outline, so that ``cv2.fillPoly`` gives a mask of one piece without holes back
    exactly. Further pieces are joined by lines of no width to the nearest corner of what is there already; holes
    are filled.

    Args:
        mask: bool ``(H, W)`` with at least one pixel.

    Returns:
        int32 ``(N, 2)``, N at least 3 (a corner is repeated where the piece has fewer).

    >>> square = np.zeros((4, 5), bool)
    >>> square[1:3, 1:4] = True
    >>> mask_polygon(square).tolist()
    [[1, 1], [1, 2], [3, 2], [3, 1]]
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    pieces = sorted((contour.reshape(-1, 2) for contour in contours), key=len, reverse=True)
    polygon = pieces[0]
    for piece in pieces[1:]:
        polygon = _joined(polygon, piece)
    while len(polygon) < 3:
        polygon = np.concatenate([polygon, polygon[-1:]])
    return np.asarray(polygon, np.int32)


def _joined(polygon: Polygon, piece: Polygon) -> Polygon:
    """``polygon`` with a detour from its corner nearest to ``piece``, around the piece, and back."""
    gaps = np.abs(polygon[:, None].astype(np.int64) - piece[None]).sum(axis=2)
    at, start = np.unravel_index(int(gaps.argmin()), gaps.shape)
    around = np.concatenate([piece[start:], piece[: start + 1]])
    return np.concatenate([polygon[: at + 1], around, polygon[at:]])
