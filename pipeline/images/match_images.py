"""The steps of ``match``: describe two images, pair their points, and refine the pairs in windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch

from pipeline.core.arrays import FloatArray, IntArray, normalize_rows
from pipeline.core.colors import id_colors
from pipeline.images.correspondences import find_correspondences, find_partners
from pipeline.images.image_sets import DescribedImage, Image, describe
from pipeline.images.window_matching import (
    NUM_ANCHORS,
    Box,
    PointPairs,
    Side,
    WindowMatches,
    choose_agreed,
    corner_ranks,
    match_windows,
    object_size_px,
    transfer_points,
)
from stages.extract import Extractor

# The side windows are described at. More is worse: on the animals of docs/parts.md, 336 px lost a quarter of the
# single points that 224 px found.
_WINDOW_SIDE_PX = 224


class Matcher:
    """Two images, described once.

    Invariant: points are (x, y) in pixels of their image; saliency is 1 everywhere where there is no cue.
    """

    def __init__(
        self,
        extractor: Extractor,
        images: Sequence[tuple[str, Image]],
        *,
        threshold: float,
        on_view: Callable[[int], object],
    ) -> None:
        """Describe two images.

        Args:
            extractor: Gives the descriptors and the saliency of whole images.
            images: Two named images, uint8 ``(H, W, 3)``.
            threshold: Foreground is more salient than this.
            on_view: Called with the number of images and windows described since its last call.
        """
        self._threshold = threshold
        self._extractor = extractor
        self._on_view = on_view
        self._images = describe(images, extractor)
        on_view(len(self._images))
        self._rows = [image.rows for image in self._images]
        self._saliency = [_saliency(image) for image in self._images]

    def best_pairs(self, num_pairs: int, *, zoom: bool) -> PointPairs:
        """A few well spread, salient pairs of points.

        Args:
            num_pairs: At most this many.
            zoom: Whether to refine in windows around the pairs of the whole images.
        """
        if not zoom:
            return self._whole_image_pairs(num_pairs)
        sides = self._sides()
        return choose_agreed(sides, self._seen(sides), num_pairs)

    def partners(self, points_xy: FloatArray, *, zoom: bool) -> PointPairs:
        """For given points of the first image, the most similar ones of the second, in order.

        Args:
            points_xy: float32 ``(P, 2)``.
            zoom: Whether to refine in windows around the pairs of the whole images.
        """
        cells = _cells(self._images[0], points_xy)
        pairs = self._points(cells, find_partners((self._rows[0], self._rows[1]), cells))
        if not zoom:
            return pairs
        sides = self._sides()
        partners = transfer_points(sides, self._seen(sides), points_xy, pairs.second_xy)
        return PointPairs(points_xy, partners)

    def saliency_of(self, pairs: PointPairs) -> FloatArray:
        """Mean of the two points' saliencies, float32 ``(M,)`` in [0, 1]."""
        sides = zip(self._images, self._saliency, (pairs.first_xy, pairs.second_xy), strict=True)
        first, second = (saliency[_cells(image, xy)] for image, saliency, xy in sides)
        return np.asarray((first + second) / 2, np.float32)

    def _whole_image_pairs(self, num_pairs: int) -> PointPairs:
        found = find_correspondences(
            (self._rows[0], self._rows[1]),
            (self._saliency[0], self._saliency[1]),
            num_pairs=num_pairs,
            threshold=self._threshold,
        )
        return self._points(found.first, found.second)

    def _seen(self, sides: tuple[Side, Side]) -> WindowMatches:
        return match_windows(sides, self._whole_image_pairs(NUM_ANCHORS), threshold=self._threshold)

    def _points(self, *cells: IntArray) -> PointPairs:
        first, second = (
            image.grid.cell_centers().reshape(-1, 2).numpy()[indices].astype(np.float32)
            for image, indices in zip(self._images, cells, strict=True)
        )
        return PointPairs(first, second)

    def _sides(self) -> tuple[Side, Side]:
        options = {"short_side": _WINDOW_SIDE_PX, "log_bins": 0, "saliency": "none", "cls": "none"}
        config = self._extractor.config.model_copy(update=options)
        windows = Extractor(config, backbone=self._extractor.backbone)
        first, second = (self._side(number, windows) for number in (0, 1))
        return first, second

    def _side(self, number: int, windows: Extractor) -> Side:
        image, saliency, rows = self._images[number], self._saliency[number], self._rows[number]

        def describe_windows(boxes: Sequence[Box]) -> list[tuple[FloatArray, FloatArray]]:
            crops = [(image.name, np.ascontiguousarray(image.image[y0:y1, x0:x1])) for x0, y0, x1, y1 in boxes]
            found = []
            for described, (x0, y0, _, _) in zip(describe(crops, windows), boxes, strict=True):
                centers = described.grid.cell_centers().reshape(-1, 2).numpy() + np.array([x0, y0])
                found.append((normalize_rows(described.rows), np.asarray(centers, np.float32)))
                self._on_view(1)
            return found

        height, width = image.image.shape[:2]
        size_px = object_size_px(saliency, (height, width))
        salient = torch.from_numpy((saliency > self._threshold).reshape(image.grid.grid_hw))
        foreground = image.grid.upsample(salient[None].float())[0].numpy() > 0.5
        detail = corner_ranks(image.image, size_px, foreground)
        return Side(
            image_hw=(height, width),
            size_px=size_px,
            detail_at=lambda xy: detail[_pixels(xy, 1, height), _pixels(xy, 0, width)],
            saliency_at=lambda xy: saliency[_cells(image, xy)],
            descriptors_at=lambda xy: normalize_rows(rows[_cells(image, xy)]),
            describe=describe_windows,
        )


def default_facet(backbone: str, lift: str) -> str:
    """The descriptors that correspond best: ``docs/parts.md`` has what was measured."""
    if not backbone.startswith("dinov2"):
        return "key@9"
    return "token@-3" if lift == "none" else "key@-1"


def draw_matches(
    first: Image,
    second: Image,
    points: FloatArray,
    partners: FloatArray,
) -> Image:
    """Both images side by side, matching points in one color with one number.

    Args:
        first: uint8 ``(H, W, 3)``.
        second: The same, any size.
        points: float32 ``(M, 2)`` as (x, y) in the first image.
        partners: The same in the second.
    """
    height = 480
    colors = id_colors(max(1, len(points)), first_hue=0.0, saturation=0.9, value=1.0)
    sides = []
    for image, places in ((first, points), (second, partners)):
        scale = height / image.shape[0]
        side = cv2.resize(image, (round(image.shape[1] * scale), height), interpolation=cv2.INTER_AREA)
        for number, place in enumerate(places, start=1):
            at = (round(float(place[0]) * scale), round(float(place[1]) * scale))
            cv2.circle(side, at, 9, (255, 255, 255), -1, cv2.LINE_AA)
            cv2.circle(side, at, 7, colors[number].tolist(), -1, cv2.LINE_AA)
            cv2.putText(side, str(number), (at[0] + 9, at[1] - 6), 0, 0.5, (255, 255, 255), 3, cv2.LINE_AA)
            cv2.putText(side, str(number), (at[0] + 9, at[1] - 6), 0, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        sides.append(side)
    return np.asarray(np.concatenate(sides, axis=1), np.uint8)


def _saliency(described: DescribedImage) -> FloatArray:
    if described.features.saliency is None:
        return np.ones(described.grid.num_cells, np.float32)
    return described.saliency.ravel()


def _pixels(points_xy: FloatArray, axis: int, length: int) -> IntArray:
    """Rows (axis 1) or columns (axis 0) of the pixels that points lie in."""
    return np.clip(np.floor(points_xy[:, axis]), 0, length - 1).astype(np.int64)


def _cells(described: DescribedImage, points_xy: FloatArray) -> IntArray:
    """Row-major indices of the cells nearest to points."""
    at = described.grid.nearest_cells(torch.from_numpy(np.asarray(points_xy, np.float32)))
    return np.asarray((at[:, 1] * described.grid.grid_hw[1] + at[:, 0]).numpy(), np.int64)
