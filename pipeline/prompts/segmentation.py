"""Masks of one frame from its prompts.

Regions of cells are grown from the clicks or in the box (:mod:`pipeline.prompts.candidates`), in the whole frame
and in a window that the backbone sees at twice the resolution or more; one of them is chosen
(:mod:`pipeline.prompts.ranking`) and goes to pixels along the colors (:mod:`pipeline.prompts.refinement`). Every
further click does the same with all clicks, and with corrections of the mask so far among the candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import FloatArray, box_iou
from pipeline.core.records import Features
from pipeline.prompts.candidates import (
    CellPrompts,
    corrections,
    least_region,
    regions_like,
    regions_of_box,
    regions_of_clicks,
    usable,
)
from pipeline.prompts.features import Describe, FrameDescription, describe
from pipeline.prompts.measures import click_depth, measure_regions
from pipeline.prompts.prompt import Box, Point, Prompt, check_prompts, prompts_by_object
from pipeline.prompts.ranking import SHARPNESS, Weights, chosen, pairwise_iou, shipped_weights
from pipeline.prompts.refinement import refine_mask
from pipeline.prompts.views import BoolArray, Raster, View, Window, whole, window_for

IndexMask = npt.NDArray[np.uint8]

NUM_SECOND_ROUND = 3
"""How many of a box's best regions are tried again against their own surroundings."""
_LEAST_FIT = 0.02


@dataclass(frozen=True, slots=True)
class Pool:
    """The candidates of one object.

    Attributes:
        kind: Which estimate applies, a key of :data:`pipeline.prompts.ranking.COLUMNS`.
        columns: float32 ``(K, M)``, what the estimate reads.
        masks: bool ``(K, P)`` on the raster.
        raster: Where they lie.
    """

    kind: str
    columns: FloatArray
    masks: BoolArray
    raster: Raster


def mask_from_prompts(image: npt.NDArray[np.uint8], features: Features, prompts: Sequence[Prompt]) -> IndexMask:
    """The index mask of a frame from points and boxes, from the features of the whole frame alone.

    Args:
        image: uint8 ``(H, W, 3)``, the frame.
        features: Of that frame; those of :func:`pipeline.prompts.describers` give the documented quality.
        prompts: Of one or several objects; ``at_seconds`` is not read.

    Returns:
        uint8 ``(H, W)``; where objects overlap the smaller one is kept.

    Raises:
        InputError: A prompt outside the frame, or an object without a positive point or a box.
    """
    return FrameSegmenter(describe(image, features)).index_mask(prompts)


class FrameSegmenter:
    """Answers prompts on one frame; what depends on the frame alone is computed once.

    Answers do not depend on what was asked before. Several threads may ask at once.

    Args:
        description: Of the frame, from the first of :func:`pipeline.prompts.describers`.
        describe_window: The second of them; without it, or with ``fine=False``,
            answers come from the whole frame alone.
        weights: Of the estimates.
    """

    def __init__(
        self,
        description: FrameDescription,
        describe_window: Describe | None = None,
        *,
        weights: Weights | None = None,
    ) -> None:
        self._image = description.image
        self._frame_hw = description.grid.image_hw
        self._whole = View(description, whole(self._frame_hw), self._frame_hw)
        self._describe_window = describe_window
        self._weights = weights or shipped_weights()
        self._windows: dict[Window, View] = {}
        self._masks: dict[tuple[bool, tuple[Prompt, ...]], BoolArray] = {}

    @property
    def description(self) -> FrameDescription:
        """Of the whole frame."""
        return self._whole.cells

    def with_weights(self, weights: Weights) -> FrameSegmenter:
        """Another segmenter of the same frame, which shares what is computed of the frame and its windows."""
        other = FrameSegmenter(self._whole.cells, self._describe_window, weights=weights)
        other._windows = self._windows
        return other

    def index_mask(self, prompts: Sequence[Prompt], *, fine: bool = True) -> IndexMask:
        """See :func:`mask_from_prompts`; with ``fine`` windows of the frame are looked at, too."""
        check_prompts(prompts, self._frame_hw)
        masks = {}
        for object_id, own in prompts_by_object(prompts).items():
            rivals = [
                Point(other.x, other.y, object_id, positive=False)
                for other in prompts
                if isinstance(other, Point) and other.positive and other.object_id != object_id
            ]
            masks[object_id] = self.object_mask([*own, *rivals], fine=fine)
        index_mask = np.zeros(self._frame_hw, np.uint8)
        for object_id in sorted(masks, key=lambda number: int(masks[number].sum()), reverse=True):
            index_mask[masks[object_id]] = object_id
        return index_mask

    def object_mask(self, prompts: Sequence[Prompt], *, fine: bool = True) -> BoolArray:
        """The mask, bool ``(H, W)``, of the one object that all prompts are about."""
        ordered = tuple(in_order(prompts))
        key = (fine and self._describe_window is not None, ordered)
        if key not in self._masks:
            pool = self.pool(ordered, fine=fine)
            estimates = pool.columns @ self._weights.by_kind[pool.kind]
            soft = pool.raster.to_pixels(chosen(estimates, pool.masks, SHARPNESS[pool.kind]), self._frame_hw)
            self._masks[key] = refine_mask(self._image, soft > 0.5, ordered)
        return self._masks[key]

    def pool(self, prompts: Sequence[Prompt], *, fine: bool = True) -> Pool:
        """The candidates for prompts, in the order given, with what the estimate reads of them."""
        box = next((prompt for prompt in prompts if isinstance(prompt, Box)), None)
        before = self.object_mask(prompts[:-1], fine=fine) if len(prompts) > 1 else None
        kind = "further" if before is not None else "click" if box is None else "box"
        window = window_for(prompts, self._frame_hw)
        views = [self._whole]
        if fine and window is not None and self._describe_window is not None:
            views.append(self._window(window))
        raster = Raster.over(self._whole.window if box is None or window is None else window)
        found = [
            (view, own := CellPrompts.of(view, prompts), self._regions(view, own, kind, prompts, before))
            for view in views
        ]
        if not any(len(regions) for _, _, regions in found):
            view, own, _ = found[0]
            found = [(view, own, least_region(view, own)[None])]
        found = [part for part in found if len(part[2])]
        columns = np.concatenate([_columns(view, own, kind, regions) for view, own, regions in found])
        masks = np.concatenate([raster.from_cells(view, regions) for view, _, regions in found])
        if before is not None:
            agreement = pairwise_iou(np.concatenate([raster.from_pixels(before)[None], masks]))[0, 1:]
            columns = np.concatenate([columns, agreement[:, None]], axis=1)
        return Pool(kind, columns, masks, raster)

    def _regions(
        self, view: View, own: CellPrompts, kind: str, prompts: Sequence[Prompt], before: BoolArray | None
    ) -> BoolArray:
        """The candidates ``(K, N)`` in one view."""
        grown = regions_of_clicks(view, own)
        if own.box is not None:
            grown += regions_of_box(view, own)
        last = prompts[-1]
        if before is not None and isinstance(last, Point):
            grown += corrections(view, prompts[:-1], last, before)
        regions = usable(grown, own)
        if kind != "box" or not len(regions):
            return regions
        estimates = _columns(view, own, kind, regions) @ self._weights.by_kind[kind]
        best = regions[np.argsort(-estimates)[:NUM_SECOND_ROUND]]
        again = usable([new for region in best for new in regions_like(view, own, region)], own)
        return np.concatenate([regions, again])

    def _window(self, window: Window) -> View:
        if window not in self._windows:
            assert self._describe_window is not None
            cells = self._describe_window(window.crop(self._image))
            self._windows[window] = View(cells, window, self._frame_hw)
        return self._windows[window]


def _columns(view: View, own: CellPrompts, kind: str, regions: BoolArray) -> FloatArray:
    """What the estimate reads of regions in a view, but for the agreement with an earlier mask."""
    measures = measure_regions(view, regions)
    if kind == "box":
        assert own.box is not None
        added = np.log(box_iou(view.extents(regions), [own.box.xyxy])[:, 0] + _LEAST_FIT)
    else:
        added = click_depth(view, regions, own.positive)
    return np.concatenate([measures, added[:, None].astype(np.float32)], axis=1)


def in_order(prompts: Sequence[Prompt]) -> list[Prompt]:
    """What an object begins with first (its box, else its first positive point), then the rest as given."""
    boxes: list[Prompt] = [prompt for prompt in prompts if isinstance(prompt, Box)]
    points = [prompt for prompt in prompts if isinstance(prompt, Point)]
    if not boxes:
        first = next(index for index, point in enumerate(points) if point.positive)
        points.insert(0, points.pop(first))
    return [*boxes, *points]
