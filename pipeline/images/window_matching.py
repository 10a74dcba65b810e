"""Correspondences between two images, refined in windows around the first ones.

On a whole image a face is a few cells, and the descriptors of eyes, nose and cheeks hardly differ. So the best
buddies of the whole images (Amir et al. 2021, section 4; ``pipeline.images.correspondences``) serve only as
anchors: around either point of a pair a window of the object's size is cut out and described again, and its best
buddies are taken; then the same again around the pairs found. The weight of a pair grows with the number of
windows that agree on it.

Not in the paper. ``docs/parts.md`` has measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from pipeline.core.arrays import FloatArray, IntArray
from pipeline.images.correspondences import best_buddies

Box = tuple[int, int, int, int]

# In units of the object's size, so that the result depends on neither the image's size nor the object's.
_WINDOW_RADIUS: Final = 0.5
_SAME_PLACE: Final = 0.08
_LEAST_GAP: Final = 0.12
# Similar images agree almost everywhere; more pairs add nothing, and memory grows with their square.
_MOST_IN_WINDOW: Final = 128
_CORNER_SIZE_PX: Final = 100
_CORNER_WINDOW: Final = 5
NUM_ANCHORS: Final = 16
"""Pairs that windows are put around, in each of the two rounds."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two images.

    Attributes:
        image_hw: Height and width in pixels.
        size_px: Size of the object, the root of its area.
        saliency_at: Float32 ``(N,)`` in [0, 1] at points ``(N, 2)`` as (x, y) in pixels.
        detail_at: Float32 ``(N,)`` in [0, 1], strength of corners at such points.
        descriptors_at: Unit rows ``(N, C)`` of the whole image at such points.
        describe: Unit rows ``(n, C)`` and their points ``(n, 2)`` in the image, for every box (x0, y0, x1, y1).
    """

    image_hw: tuple[int, int]
    size_px: float
    saliency_at: Callable[[FloatArray], FloatArray]
    detail_at: Callable[[FloatArray], FloatArray]
    descriptors_at: Callable[[FloatArray], FloatArray]
    describe: Callable[[Sequence[Box]], list[tuple[FloatArray, FloatArray]]]


@dataclass(frozen=True, slots=True)
class PointPairs:
    """Matched points.

    Attributes:
        first_xy: float32 ``(M, 2)``, (x, y) in pixels of the first image.
        second_xy: The same in the second.
    """

    first_xy: FloatArray
    second_xy: FloatArray

    def __len__(self) -> int:
        return len(self.first_xy)


@dataclass(frozen=True, slots=True)
class WindowMatches(PointPairs):
    """Matched points of many windows.

    Attributes:
        window: int64 ``(M,)``, the number of the window a pair was found in.
    """

    window: IntArray


def object_size_px(saliency: FloatArray, image_hw: tuple[int, int]) -> float:
    """Square root of the salient area (weighted by saliency); at least one pixel.

    >>> object_size_px(np.full((2, 2), 0.25, np.float32), (40, 40))
    20.0
    """
    return max(1.0, float(np.sqrt(saliency.mean() * image_hw[0] * image_hw[1])))


def corner_ranks(image: npt.NDArray[np.uint8], size_px: float, foreground: npt.NDArray[np.bool_]) -> FloatArray:
    """For every pixel, the share of the foreground with weaker corners (Shi and Tomasi 1994).

    Corners are computed at the scale of the object, so that an eye counts and fur does not.

    Args:
        image: uint8 ``(H, W, 3)``.
        size_px: The object's size.
        foreground: ``(H, W)``.

    Returns:
        float32 ``(H, W)`` in [0, 1].
    """
    scale = min(1.0, _CORNER_SIZE_PX / size_px)
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)
    smooth = cv2.GaussianBlur(small.astype(np.float32) / 255, (0, 0), 1.0)
    corners = cv2.cornerMinEigenVal(smooth, _CORNER_WINDOW, ksize=3)
    full = cv2.resize(corners, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)
    known = np.sort(full[foreground]) if foreground.any() else np.sort(full.ravel())
    return np.asarray(np.searchsorted(known, full) / len(known), np.float32)


def window_box(center_xy: Sequence[float], radius_px: float, image_hw: tuple[int, int]) -> Box:
    """A square around a point, moved so that it lies in the image; smaller only where the image is.

    >>> window_box((3, 50), 10, (100, 60)), window_box((30, 50), 100, (100, 60))
    ((0, 40, 20, 60), (0, 20, 60, 80))
    """
    side = min(max(2, round(2 * radius_px)), *image_hw)
    corner = (
        min(max(0, round(center - side / 2)), limit - side)
        for center, limit in zip(center_xy, reversed(image_hw), strict=True)
    )
    x, y = corner
    return x, y, x + side, y + side


def match_windows(sides: tuple[Side, Side], anchors: PointPairs, *, threshold: float) -> WindowMatches:
    """All pairs found in windows around the anchors, and then in windows around the best of those.

    Args:
        sides: The images.
        anchors: Pairs to start from.
        threshold: Foreground is more salient than this.

    Returns:
        The foreground's best buddies of every window.
    """
    first = _match_once(sides, anchors, threshold)
    second = _match_once(sides, choose_agreed(sides, first, NUM_ANCHORS), threshold)
    return WindowMatches(
        np.concatenate([first.first_xy, second.first_xy]),
        np.concatenate([first.second_xy, second.second_xy]),
        np.concatenate([first.window, second.window + len(anchors)]),
    )


def choose_agreed(sides: tuple[Side, Side], seen: WindowMatches, num_pairs: int) -> PointPairs:
    """Pairs that many windows agree on, far from one another in both images and different in their descriptors.

    Args:
        sides: The images.
        seen: From :func:`match_windows`.
        num_pairs: At most this many.

    Returns:
        Pairs at the mean place of their matches (weighted by detail), in order of falling weight.
    """
    if not len(seen):
        return seen
    places = seen.first_xy / sides[0].size_px, seen.second_xy / sides[1].size_px
    distances = _distances(places[0], places[0]), _distances(places[1], places[1])
    same = np.maximum(*distances) < _SAME_PLACE
    agreeing = _count_windows(same, seen.window)
    saliency = (sides[0].saliency_at(seen.first_xy) + sides[1].saliency_at(seen.second_xy)) / 2
    detail = np.sqrt(sides[0].detail_at(seen.first_xy) * sides[1].detail_at(seen.second_xy))
    chosen = _choose_spread(
        weight=np.square(agreeing) * saliency * detail,
        closest=np.minimum(*distances),
        descriptors=(sides[0].descriptors_at(seen.first_xy), sides[1].descriptors_at(seen.second_xy)),
        count=num_pairs,
    )
    share = np.where(same[chosen], np.square(detail), 0).astype(np.float32)
    share /= share.sum(axis=1, keepdims=True)
    return PointPairs(share @ seen.first_xy, share @ seen.second_xy)


def transfer_points(
    sides: tuple[Side, Side], seen: WindowMatches, points_xy: FloatArray, partners_xy: FloatArray
) -> FloatArray:
    """Partners of given points, transferred by the pairs found near them.

    Of the pairs near a point those count that most windows agree on; the offset of the point from theirs is kept,
    in units of either object's size.

    Args:
        sides: The images.
        seen: From :func:`match_windows`.
        points_xy: float32 ``(P, 2)`` in the first image.
        partners_xy: The same in the second, kept for points without a pair near them.

    Returns:
        float32 ``(P, 2)`` in the second image.
    """
    sizes = sides[0].size_px, sides[1].size_px
    places = seen.first_xy / sizes[0], seen.second_xy / sizes[1]
    found = partners_xy.copy()
    for number, near in enumerate(_distances(points_xy / sizes[0], places[0]) < _SAME_PLACE):
        if not near.any():
            continue
        targets = places[1][near] + points_xy[number] / sizes[0] - places[0][near]
        same = _distances(targets, targets) < _SAME_PLACE
        best = int(_count_windows(same, seen.window[near]).argmax())
        found[number] = targets[same[best]].mean(axis=0) * sizes[1]
    limit = np.array([sides[1].image_hw[1], sides[1].image_hw[0]], np.float32)
    return np.clip(found, 0, limit)


def _describe(side: Side, centers_xy: FloatArray) -> list[tuple[FloatArray, FloatArray]]:
    return side.describe([window_box(xy, _WINDOW_RADIUS * side.size_px, side.image_hw) for xy in centers_xy])


def _match_once(sides: tuple[Side, Side], anchors: PointPairs, threshold: float) -> WindowMatches:
    """The foreground's best buddies in a window around each anchor."""
    seen: list[tuple[FloatArray, FloatArray]] = []
    described = (
        _describe(side, xy) for side, xy in zip(sides, (anchors.first_xy, anchors.second_xy), strict=True)
    )
    for windows in zip(*described, strict=True):
        rows, points = [], []
        for side, (descriptors, xy) in zip(sides, windows, strict=True):
            salient = side.saliency_at(xy) > threshold
            rows.append(descriptors[salient])
            points.append(xy[salient])
        if len(rows[0]) and len(rows[1]):
            first, second = best_buddies(rows[0], rows[1])
            some = np.linspace(0, len(first) - 1, min(len(first), _MOST_IN_WINDOW)).astype(np.int64)
            seen.append((points[0][first[some]], points[1][second[some]]))
        else:
            seen.append((points[0][:0], points[1][:0]))
    if not seen:
        return WindowMatches(anchors.first_xy, anchors.second_xy, np.zeros(0, np.int64))
    return WindowMatches(
        np.concatenate([first for first, _ in seen]).astype(np.float32),
        np.concatenate([second for _, second in seen]).astype(np.float32),
        np.repeat(np.arange(len(seen)), [len(first) for first, _ in seen]),
    )


def _count_windows(same: npt.NDArray[np.bool_], window: IntArray) -> IntArray:
    """How many windows hold a pair of the same place, ``(N,)``."""
    member = np.equal.outer(window, np.unique(window)).astype(np.float32)
    return np.asarray((same.astype(np.float32) @ member > 0).sum(axis=1), np.int64)


def _choose_spread(
    weight: FloatArray, closest: FloatArray, descriptors: tuple[FloatArray, FloatArray], count: int
) -> IntArray:
    """Greedy farthest-first choice, by weight and by distance in both images' descriptors from those chosen."""
    chosen: list[int] = []
    value = np.array(weight, np.float32)
    unlike = np.full(len(value), np.inf, np.float32)
    while len(chosen) < count and value.max() > 0:
        best = int(value.argmax())
        chosen.append(best)
        for rows in descriptors:
            unlike = np.minimum(unlike, 1 - rows @ rows[best])
        unlike[closest[best] < _LEAST_GAP] = 0
        value = np.asarray(weight * np.maximum(unlike, 0), np.float32)
    return np.array(chosen, np.int64)


def _distances(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.asarray(cdist(a, b), np.float32)
