"""From cells to pixels: a band around the region's border is decided by the colors of the frame.

GrabCut (Rother, Kolmogorov, Blake, SIGGRAPH 2004; OpenCV's implementation) in a crop around the object, with the
pixels deep inside the region and those well outside as given. Clicks are given too, and so is a box's outside.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.prompts.prompt import Box, Point, Prompt

BoolMask = npt.NDArray[np.bool_]

WORK_SIDE_PX = 320
"""Longest side of the crop GrabCut works on, so that its time does not depend on the frame."""
BAND_PX = 10.0
"""Half the width of the undecided band, in pixels of a frame 480 high."""
ITERATIONS = 2
CLICK_PX = 4.0
_REFERENCE_HEIGHT = 480
_MARGIN_SHARE = 0.25
_CORE_SHARE = 0.6
"""At least the inner part of a thin object is given: pixels deeper than this share of its greatest depth."""


def refine_mask(image: npt.NDArray[np.uint8], mask: BoolMask, prompts: Sequence[Prompt]) -> BoolMask:
    """A mask whose border follows the colors of the image.

    Args:
        image: uint8 ``(H, W, 3)``, RGB.
        mask: bool ``(H, W)``, from cells.
        prompts: Those of the object; positive points stay inside, negative ones outside, and nothing leaves a box.

    Returns:
        bool ``(H, W)``.
    """
    unit = image.shape[0] / _REFERENCE_HEIGHT
    mask = mask & _allowed(mask.shape, prompts)
    if not mask.any():
        return mask
    crop = _crop(mask, prompts, 20 * unit)
    height, width = mask[crop].shape
    scale = min(1.0, WORK_SIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(mask[crop].astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5
    origin = (crop[1].start, crop[0].start)
    trimap = _trimap(small, BAND_PX * unit * scale)
    _give_prompts(trimap, prompts, origin, scale, max(1, round(CLICK_PX * unit * scale)))
    decided = _grabcut(cv2.resize(image[crop], size, interpolation=cv2.INTER_AREA), trimap)
    refined = np.zeros_like(mask)
    full = cv2.resize(decided.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    refined[crop] = full > 0.5
    return refined & _allowed(mask.shape, prompts)


def _allowed(shape: tuple[int, ...], prompts: Sequence[Prompt]) -> BoolMask:
    allowed = np.ones(shape, np.bool_)
    for prompt in prompts:
        if isinstance(prompt, Box):
            inside = np.zeros_like(allowed)
            left, top, right, bottom = (max(0, round(value)) for value in prompt.xyxy)
            inside[top:bottom, left:right] = True
            allowed &= inside
    return allowed


def _crop(mask: BoolMask, prompts: Sequence[Prompt], margin: float) -> tuple[slice, slice]:
    """The rows and columns of the mask and its positive points, with a margin."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    ends = [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]
    pad = margin + _MARGIN_SHARE * max(ends[2] - ends[0], ends[3] - ends[1])
    left, top, right, bottom = ends[0] - pad, ends[1] - pad, ends[2] + pad, ends[3] + pad
    height, width = mask.shape
    return (
        slice(max(0, int(top)), min(height, int(bottom) + 1)),
        slice(max(0, int(left)), min(width, int(right) + 1)),
    )


def _trimap(mask: BoolMask, band: float) -> npt.NDArray[np.uint8]:
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1, mode="edge"), cv2.DIST_L2, 5)[1:-1, 1:-1]
    outside = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
    trimap = np.where(mask, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    trimap[depth > min(band, _CORE_SHARE * float(depth.max()))] = cv2.GC_FGD
    trimap[outside > band] = cv2.GC_BGD
    return trimap


def _give_prompts(
    trimap: npt.NDArray[np.uint8],
    prompts: Sequence[Prompt],
    origin: tuple[int, int],
    scale: float,
    radius: int,
) -> None:
    """Write points as small disks, and a box's outside, into a trimap of the crop at ``origin`` (x, y)."""
    for prompt in prompts:
        if isinstance(prompt, Point):
            center = (int((prompt.x - origin[0]) * scale), int((prompt.y - origin[1]) * scale))
            cv2.circle(trimap, center, radius, cv2.GC_FGD if prompt.positive else cv2.GC_BGD, -1)
        else:
            edges = (prompt.xyxy - np.array([*origin, *origin])) * scale
            left, top, right, bottom = (max(0, round(float(value))) for value in edges)
            outside = np.ones(trimap.shape, np.bool_)
            outside[top:bottom, left:right] = False
            trimap[outside] = cv2.GC_BGD


def _grabcut(image: npt.NDArray[np.uint8], trimap: npt.NDArray[np.uint8]) -> BoolMask:
    """The foreground; the trimap's own guess where either side has no pixels to learn colors from."""
    classes = trimap.copy()
    if (trimap == cv2.GC_FGD).any() and (trimap == cv2.GC_BGD).any():
        cv2.setRNGSeed(0)
        bgr = np.ascontiguousarray(image[..., ::-1])
        try:
            cv2.grabCut(
                bgr, classes, None, np.zeros((1, 65)), np.zeros((1, 65)), ITERATIONS, cv2.GC_INIT_WITH_MASK
            )
        except cv2.error:
            classes = trimap.copy()
    return np.isin(classes, (cv2.GC_FGD, cv2.GC_PR_FGD))
