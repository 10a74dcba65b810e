"""Candidate regions of one view for what was clicked or boxed: one of them is nearly the object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.prompts.fields import box_fields, click_fields, discriminant
from pipeline.prompts.measures import ring_around
from pipeline.prompts.prompt import Box, Point, Prompt
from pipeline.prompts.regions import LARGEST_SHARE, nested_regions, without_specks
from pipeline.prompts.views import BoolArray, View, region_of_pixels

BOX_SEEDS = (0.3, 0.5, 0.7)
"""Where in a box, in shares of its width and height, regions are grown from."""
LARGEST_WINDOW_SHARE = 0.7
SMALLEST_REGION = 6
"""Cells; smaller regions have no inside that could be measured."""


@dataclass(frozen=True, slots=True)
class CellPrompts:
    """The prompts of one object in the cells of a view.

    Attributes:
        positive: Clicked cells of the object that lie in the view.
        negative: Clicked cells that are not the object; a cell clicked for both counts as positive.
        inside: bool ``(N,)``, the cells of the box, all without one.
        box: The box.
    """

    positive: tuple[int, ...]
    negative: tuple[int, ...]
    inside: BoolArray
    box: Box | None

    @classmethod
    def of(cls, view: View, prompts: Sequence[Prompt]) -> CellPrompts:
        """The prompts of one object; points outside the view are left out."""
        points = [p for p in prompts if isinstance(p, Point) and view.window.contains(p)]
        positive = dict.fromkeys(view.cell(p) for p in points if p.positive)
        negative = dict.fromkeys(view.cell(p) for p in points if not p.positive)
        box = next((p for p in prompts if isinstance(p, Box)), None)
        inside = np.ones(view.cells.grid.num_cells, np.bool_) if box is None else view.cells_in(box)
        return cls(tuple(positive), tuple(cell for cell in negative if cell not in positive), inside, box)

    def fit(self, masks: BoolArray) -> BoolArray:
        """Which regions ``(K, N)`` contain every positive cell, and none that is negative or outside the box."""
        contained = masks[:, list(self.positive)].all(axis=1) & ~masks[:, list(self.negative)].any(axis=1)
        return np.asarray(contained & ~(masks & ~self.inside).any(axis=1), np.bool_)


def regions_of_clicks(view: View, prompts: CellPrompts) -> list[BoolArray]:
    """Regions grown from all positive clicks at once, kept away from the negative ones."""
    if not prompts.positive:
        return []
    found = click_fields(view.cells, prompts.positive, prompts.negative)
    room = found.room & prompts.inside
    room[list(prompts.positive)] = True
    share = LARGEST_WINDOW_SHARE if view.is_window else LARGEST_SHARE
    grid_hw = view.cells.grid.grid_hw
    return [
        region
        for field in found.fields
        for region in nested_regions(field, room, grid_hw, seeds=prompts.positive, largest_share=share)
    ]


def regions_of_box(view: View, prompts: CellPrompts) -> list[BoolArray]:
    """Regions in a box: what differs from its surroundings, and what is like one of nine places inside."""
    assert prompts.box is not None
    left, top, right, bottom = prompts.box.xyxy
    fields = box_fields(view.cells, prompts.inside)
    for down in BOX_SEEDS:
        for across in BOX_SEEDS:
            seed = view.cell(Point(left + across * (right - left), top + down * (bottom - top)))
            found = click_fields(view.cells, (seed,)).fields
            fields += [found[1], found[2]]
    grid_hw = view.cells.grid.grid_hw
    regions = [region for field in fields for region in nested_regions(field, prompts.inside, grid_hw)]
    return [prompts.inside, *(without_specks(region, grid_hw) for region in regions)]


def regions_like(view: View, prompts: CellPrompts, region: BoolArray) -> list[BoolArray]:
    """A second round: regions of what is more like ``region`` than like the ring around it."""
    ring = ring_around(region, view.cells.grid.grid_hw)
    if not ring.any() or not region.any():
        return []
    field = discriminant(view.cells, region, ring)
    grid_hw = view.cells.grid.grid_hw
    if prompts.box is not None:
        found = nested_regions(field, prompts.inside, grid_hw)
        return [without_specks(candidate, grid_hw) for candidate in found]
    room = prompts.inside.copy()
    room[list(prompts.negative)] = False
    return nested_regions(field, room, grid_hw, seeds=prompts.positive)


def corrections(view: View, earlier: Sequence[Prompt], last: Point, mask: BoolArray) -> list[BoolArray]:
    """The region so far, with the surroundings of a further click added or removed.

    Args:
        view: What the regions are in.
        earlier: The prompts that ``mask`` is the answer to.
        last: The further click.
        mask: bool ``(H, W)`` in pixels of the frame.
    """
    region = region_of_pixels(view, mask)
    if not view.window.contains(last):
        return [region]
    cell = view.cell(last)
    before = CellPrompts.of(view, earlier)
    rivals = before.negative if last.positive else before.positive
    rivals = tuple(other for other in rivals if other != cell)
    found = click_fields(view.cells, (cell,), rivals)
    room = found.room & (~region & before.inside if last.positive else region)
    room[cell] = True
    grid_hw = view.cells.grid.grid_hw
    grown = [g for field in found.fields for g in nested_regions(field, room, grid_hw, seeds=(cell,))]
    least = np.zeros_like(region)
    least[cell] = True
    return [region | change if last.positive else region & ~change for change in (least, *grown)]


def usable(regions: Sequence[BoolArray], prompts: CellPrompts) -> BoolArray:
    """The regions that fit the prompts, bool ``(K, N)``; maybe none.

    Equal regions stay: what several maps agree on has more weight in the choice.
    """
    if not regions:
        return np.zeros((0, len(prompts.inside)), np.bool_)
    masks = np.stack(regions)
    return np.asarray(masks[prompts.fit(masks) & (masks.sum(axis=1) >= SMALLEST_REGION)], np.bool_)


def least_region(view: View, prompts: CellPrompts) -> BoolArray:
    """The surroundings of the positive clicks, or the box: for prompts that nothing else fits."""
    region = prompts.inside.copy() if prompts.box is not None else np.zeros_like(prompts.inside)
    for cell in prompts.positive:
        region[view.cells.neighborhood(cell)] = True
    region[list(prompts.negative)] = False
    region[list(prompts.positive)] = True
    if not region.any():
        region = prompts.inside
    return region
