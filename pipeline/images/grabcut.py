"""Cell masks refined to pixels with GrabCut.

Source: Amir et al. 2021, supplement, on Rother et al. 2004; OpenCV's implementation.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]


def grabcut(
    image: npt.NDArray[np.uint8], mask: BoolArray, *, iterations: int = 5, erosion_px: int = 7
) -> BoolArray:
    """The foreground after GrabCut, started from an eroded mask and its eroded complement.

    Pixels well inside the mask are definite foreground, pixels well outside definite background, the rest
    probable foreground.

    Args:
        image: uint8 ``(H, W, 3)``, RGB.
        mask: bool ``(H, W)``.
        iterations: Of GrabCut.
        erosion_px: Side of the eroding square.

    Returns:
        bool ``(H, W)``; the mask itself where either side erodes to nothing, since no colors can be learned.
    """
    kernel = np.ones((erosion_px, erosion_px), np.uint8)
    inside = cv2.erode(mask.astype(np.uint8), kernel) > 0
    outside = cv2.erode((~mask).astype(np.uint8), kernel) > 0
    if not inside.any() or not outside.any():
        return mask.copy()
    trimap = np.full(mask.shape, cv2.GC_PR_FGD, np.uint8)
    trimap[outside] = cv2.GC_BGD
    trimap[inside] = cv2.GC_FGD
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    bgr = np.ascontiguousarray(image[..., ::-1])
    try:
        cv2.grabCut(bgr, trimap, None, *models, iterations, cv2.GC_INIT_WITH_MASK)
    except cv2.error:
        return mask.copy()
    return np.isin(trimap, (cv2.GC_FGD, cv2.GC_PR_FGD))
