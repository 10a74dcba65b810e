"""Masks of one frame from its prompts.

A first click or a box picks one of many candidate regions (:mod:`pipeline.prompts.regions`); every further click
corrects what came before: it adds or removes the region around itself that makes the object look most like one.
The cells' region then goes to pixels (:mod:`pipeline.prompts.refinement`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from pipeline.core.arrays import FloatArray, box_iou
from pipeline.core.records import Features
from pipeline.prompts.features import FrameDescription, describe
from pipeline.prompts.prompt import Box, Point, Prompt, check_prompts, prompts_by_object
from pipeline.prompts.refinement import refine_mask
from pipeline.prompts.regions import (
    BoolArray,
    nested_regions,
    object_scores,
    ring_around,
    similarity_fields,
    without_specks,
)

IndexMask = npt.NDArray[np.uint8]

BOX_SEEDS = (0.3, 0.5, 0.7)
"""Where in a box, in shares of its width and height, regions are grown from."""
BOX_IOU_WEIGHT = 1.0
CHANGE_WEIGHT = 0.2
"""How much a correction that changes the region's area by some factor is held against it."""


def mask_from_prompts(image: npt.NDArray[np.uint8], features: Features, prompts: Sequence[Prompt]) -> IndexMask:
    """The index mask of a frame from points and boxes.

    Args:
        image: uint8 ``(H, W, 3)``, the frame.
        features: Of that frame; those of :func:`pipeline.prompts.prompt_extractor` give the documented quality.
        prompts: Of one or several objects; ``at_seconds`` is not read.

    Returns:
        uint8 ``(H, W)``; where objects overlap the smaller one is kept.

    Raises:
        InputError: A prompt outside the frame, or an object without a positive point or a box.
    """
    return FrameSegmenter(describe(image, features)).index_mask(prompts)


class FrameSegmenter:
    """Answers prompts on one frame; what depends on the frame alone is computed once.

    Args:
        description: From :func:`pipeline.prompts.describe_frame`.
    """

    def __init__(self, description: FrameDescription) -> None:
        self._frame = description
        self._regions: dict[tuple[Prompt, ...], BoolArray] = {}

    def index_mask(self, prompts: Sequence[Prompt]) -> IndexMask:
        """See :func:`mask_from_prompts`."""
        check_prompts(prompts, self._frame.grid.image_hw)
        masks = {}
        for object_id, own in prompts_by_object(prompts).items():
            rivals = [
                Point(other.x, other.y, object_id, positive=False)
                for other in prompts
                if isinstance(other, Point) and other.positive and other.object_id != object_id
            ]
            masks[object_id] = self.object_mask([*own, *rivals])
        index_mask = np.zeros(self._frame.grid.image_hw, np.uint8)
        for object_id in sorted(masks, key=lambda number: int(masks[number].sum()), reverse=True):
            index_mask[masks[object_id]] = object_id
        return index_mask

    def object_mask(self, prompts: Sequence[Prompt]) -> BoolArray:
        """The mask, bool ``(H, W)``, of the one object that all prompts are about."""
        ordered = _in_order(prompts)
        region = self._region(tuple(ordered))
        soft = torch.from_numpy(region.reshape(1, *self._frame.grid.grid_hw).astype(np.float32))
        pixels = self._frame.grid.upsample(soft)[0].numpy() > 0.5
        return refine_mask(self._frame.image, pixels, ordered)

    def _region(self, prompts: tuple[Prompt, ...]) -> BoolArray:
        """The cells of the object after these prompts; remembered, for the next click on the same object."""
        if prompts not in self._regions:
            *earlier, last = prompts
            if isinstance(last, Box):
                region = self._from_box(last)
            elif not earlier:
                region = self._from_point(self._frame.cell(last.x, last.y))
            else:
                region = self._corrected(self._region(tuple(earlier)), last, earlier)
            self._regions[prompts] = region
        return self._regions[prompts]

    def _from_point(self, cell: int) -> BoolArray:
        room = np.ones(self._frame.grid.num_cells, np.bool_)
        candidates = self._grown(cell, [], room)
        return candidates[int(object_scores(self._frame, candidates).argmax())]

    def _grown(self, cell: int, others: list[int], room: BoolArray) -> list[BoolArray]:
        grid_hw = self._frame.grid.grid_hw
        fields = similarity_fields(self._frame, [cell], others)
        return [region for field in fields for region in nested_regions(field, room, grid_hw, seed=cell)]

    def _corrected(self, region: BoolArray, point: Point, earlier: Sequence[Prompt]) -> BoolArray:
        cell = self._frame.cell(point.x, point.y)
        points = [prompt for prompt in earlier if isinstance(prompt, Point)]
        others = [self._frame.cell(p.x, p.y) for p in points if p.positive != point.positive]
        others = [other for other in others if other != cell]
        room = ~region if point.positive else region.copy()
        for prompt in earlier:
            if isinstance(prompt, Box) and point.positive:
                room &= self._cells_in(prompt)
        if others:
            # What is nearer to a click that says the opposite is not this click's to change.
            room &= similarity_fields(self._frame, [cell], others)[1] > 0
        room[cell] = True
        least = region.copy()
        least[cell] = point.positive
        changes = self._grown(cell, others, room)
        candidates = [least, *(region | change if point.positive else region & ~change for change in changes)]
        areas = np.array([candidate.sum() for candidate in candidates]) / max(int(region.sum()), 1)
        scores = object_scores(self._frame, candidates) * np.minimum(areas, 1 / areas.clip(1e-6)) ** CHANGE_WEIGHT
        return candidates[int(scores.argmax())]

    def _from_box(self, box: Box) -> BoolArray:
        inside = self._cells_in(box)
        grid_hw = self._frame.grid.grid_hw
        fields = self._discriminants(inside)
        left, top, right, bottom = box.xyxy
        for down in BOX_SEEDS:
            for across in BOX_SEEDS:
                seed = self._frame.cell(left + across * (right - left), top + down * (bottom - top))
                fields += similarity_fields(self._frame, [seed])
        regions = [region for field in fields for region in nested_regions(field, inside, grid_hw)]
        candidates = [inside, *(without_specks(region, grid_hw) for region in regions)]
        extents = np.array([self._extent(candidate) for candidate in candidates])
        overlaps = box_iou(extents, [box.xyxy])[:, 0]
        scores = object_scores(self._frame, candidates) * overlaps**BOX_IOU_WEIGHT
        return candidates[int(scores.argmax())]

    def _discriminants(self, inside: BoolArray) -> list[FloatArray]:
        """How much each cell differs from what surrounds the box: along the means, and from its nearest cells."""
        whitened, directions = self._frame.whitened, self._frame.directions
        ring = ring_around(inside, self._frame.grid.grid_hw)
        if not ring.any():
            return []
        linear = whitened @ (whitened[inside].mean(axis=0) - whitened[ring].mean(axis=0))
        sample = directions[ring][:: max(1, int(ring.sum()) // 300)]
        nearest = -np.sort(directions @ sample.T, axis=1)[:, -3:].mean(axis=1)
        both = sum((field - field[inside].mean()) / max(field[inside].std(), 1e-6) for field in (linear, nearest))
        return [np.asarray(field, np.float32) for field in (linear, nearest, both)]

    def _cells_in(self, box: Box) -> BoolArray:
        centers = self._frame.grid.cell_centers().numpy().reshape(-1, 2)
        x, y = centers[:, 0], centers[:, 1]
        inside = (x > box.left) & (x < box.right) & (y > box.top) & (y < box.bottom)
        inside[self._frame.cell((box.left + box.right) / 2, (box.top + box.bottom) / 2)] = True
        return np.asarray(inside, np.bool_)

    def _extent(self, region: BoolArray) -> tuple[float, float, float, float]:
        """The box around a region in frame pixels."""
        grid = self._frame.grid
        cells = region.reshape(grid.grid_hw)
        rows, columns = np.flatnonzero(cells.any(axis=1)), np.flatnonzero(cells.any(axis=0))
        corners = torch.tensor([[columns[0], rows[0]], [columns[-1] + 1, rows[-1] + 1]], dtype=torch.float32)
        (left, top), (right, bottom) = grid.cells_to_pixels(corners).tolist()
        return left, top, right, bottom


def _in_order(prompts: Sequence[Prompt]) -> list[Prompt]:
    """What an object begins with first (its box, else its first positive point), then the rest as given."""
    boxes: list[Prompt] = [prompt for prompt in prompts if isinstance(prompt, Box)]
    points = [prompt for prompt in prompts if isinstance(prompt, Point)]
    if not boxes:
        first = next(index for index, point in enumerate(points) if point.positive)
        points.insert(0, points.pop(first))
    return [*boxes, *points]
