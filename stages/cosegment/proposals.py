"""Proposals of objects: everything in a frame that stands out or moves, one region per thing.

More than the most salient: beside the foreground that the codebook knows, discriminants
(:mod:`stages.cosegment.foreground`) are trained in further rounds, each on the cells that nothing before has
explained, for as long as what a round finds stands out. All these cells are then grouped by appearance and common
motion (:mod:`stages.cosegment.grouping`).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import FloatArray, IntArray, normalize_rows
from pipeline.core.grid import PatchGrid
from pipeline.core.state import State
from stages.cosegment.codebook import Codebook
from stages.cosegment.foreground import Discriminant, fit_discriminant
from stages.cosegment.grouping import group_cells
from stages.cosegment.motion import flow_targets, moving_evidence
from stages.cosegment.observation import Observation, motion_of

BoolArray = npt.NDArray[np.bool_]
Regions = npt.NDArray[np.uint8]

MAX_ROUNDS = 2
"""Trainings of a discriminant on what is left."""

MAX_FITTED_FRAMES = 8
"""Frames of the window that a round is trained on, spread evenly."""

MIN_EVIDENCE = 1.55
"""What the cells of a further round must have: mean saliency, relative to the frame's, times half plus the mean
evidence of motion. Over 45 windows of three composites and three sequences of DAVIS, rounds that found further
objects had 1.6 and more, others 1.5 and less."""

MIN_LOGIT = 1.0
"""Log odds of foreground from which a cell is part of a proposal."""

MAX_DISTANCE = 3.2
"""Mean squared distance of cells up to which they are one object. Descriptors of unrelated cells are 2 apart, so
that appearance alone divides nothing: an animal's parts look different too. It takes motion as well."""

MOTION_WEIGHT = 1.0
"""Of the motion, in multiples of what is usual in the frame's foreground, beside unit descriptors."""

MOTION_FRAMES = 3

MIN_CELLS = 4
MIN_SQUARES = 2
"""Smallest proposal: in cells, and in squares of two by two cells, so that seams between things are none."""

MAX_PROPOSALS = 20


class FurtherRounds:
    """The discriminants of what stands out beyond the known foreground, the most salient first."""

    def __init__(self, discriminants: Sequence[Discriminant], center: FloatArray) -> None:
        """Take the discriminants and the window's mean descriptor ``(C,)``."""
        self.discriminants = tuple(discriminants)
        self.center = center

    @classmethod
    def fit(
        cls, window: Sequence[Observation], known: Sequence[BoolArray], grid_hw: tuple[int, int]
    ) -> FurtherRounds:
        """Train on a window of at least one frame, beyond the cells ``(N,)`` known in each."""
        rows = [seen.rows for seen in window]
        motion = motion_of(window)
        step = -(-len(window) // MAX_FITTED_FRAMES)
        chosen = range(len(window) - 1, -1, -step)
        left = {place: ~_grown(known[place], grid_hw) for place in chosen}
        found: list[Discriminant] = []
        for _ in range(MAX_ROUNDS):
            discriminant = fit_discriminant(
                [rows[place][left[place]] for place in chosen],
                [window[place].saliency[left[place]] for place in chosen],
                [motion[place][left[place]] for place in chosen],
            )
            if discriminant is None:
                break
            inside = {place: (discriminant.logits(rows[place]) > 0) & left[place] for place in chosen}
            if not _stands_out(
                np.concatenate([window[place].saliency[inside[place]] for place in chosen]),
                np.concatenate([moving_evidence(motion[place])[inside[place]] for place in chosen]),
            ):
                break
            found.append(discriminant)
            for place in chosen:
                left[place] &= ~_grown(inside[place], grid_hw)
        return cls(found, np.concatenate([rows[place] for place in chosen]).mean(axis=0))

    def foreground(self, rows: FloatArray) -> BoolArray:
        """Which cells ``(N,)`` some round takes for foreground."""
        inside = np.zeros(len(rows), bool)
        for discriminant in self.discriminants:
            inside |= discriminant.logits(rows) > MIN_LOGIT
        return inside


def propose_objects(
    rounds: FurtherRounds, window: Sequence[Observation], place: int, grid: PatchGrid, known: BoolArray
) -> tuple[Regions, int]:
    """The objects of one frame of a window.

    Args:
        rounds: Trained on the window.
        window: Consecutive frames.
        place: Which of them.
        grid: Where the cells lie.
        known: bool ``(N,)``, its foreground as found before.

    Returns:
        uint8 ``(h, w)``: 0 background, proposals numbered from 1 by falling area; and how many were too small.
    """
    seen = window[place]
    inside = known | rounds.foreground(seen.rows)
    result = np.zeros(len(inside), np.uint8)
    if not inside.any():
        return result.reshape(grid.grid_hw), 0
    rows = seen.part_rows[inside] if seen.part_rows is not None else _centered(seen.rows[inside], rounds.center)
    moved = recent_motion(window, place, grid)[inside]
    usual_px = 1.0 + float(np.median(np.linalg.norm(moved, axis=1)))
    vectors = np.concatenate([rows, (MOTION_WEIGHT / usual_px) * moved], axis=1)
    positions = np.stack(np.divmod(np.flatnonzero(inside), grid.grid_hw[1]), axis=1)
    groups = group_cells(vectors, positions, MAX_DISTANCE)
    sizes = _solid_sizes(groups, inside.reshape(grid.grid_hw))
    kept = [group for group in np.argsort(-sizes, kind="stable") if sizes[group] > 0][:MAX_PROPOSALS]
    numbers = np.zeros(len(sizes), np.uint8)
    numbers[kept] = np.arange(1, len(kept) + 1)
    result[inside] = numbers[groups]
    return result.reshape(grid.grid_hw), len(sizes) - len(kept)


def _solid_sizes(groups: IntArray, inside: BoolArray) -> IntArray:
    """Cells of each group ``(G,)``; 0 for one that is too small, or nowhere two cells wide like a seam."""
    sizes = np.bincount(groups)
    labels = np.full(inside.shape, -1, np.int64)
    labels[inside] = groups
    corner = labels[1:, 1:]
    others = (labels[:-1, :-1], labels[1:, :-1], labels[:-1, 1:])
    square = (corner >= 0) & np.logical_and.reduce([corner == other for other in others])
    squares = np.bincount(corner[square], minlength=len(sizes))
    return np.where((squares >= MIN_SQUARES) & (sizes >= MIN_CELLS), sizes, 0)


def recent_motion(window: Sequence[Observation], place: int, grid: PatchGrid) -> FloatArray:
    """How far each cell moved in the last ``MOTION_FRAMES`` frames, or will where these are not in the window.

    Returns:
        float32 ``(N, 2)`` as (x, y) in pixels of the small frame; zeros where no flow is known.
    """
    later = place if place >= MOTION_FRAMES else min(place + MOTION_FRAMES, len(window) - 1)
    offsets = _origin_offsets(window, later, MOTION_FRAMES if later == place else later - place)
    if offsets is None:
        return np.zeros((grid.num_cells, 2), np.float32)
    if later == place:
        return -grid.cell_means(np.ascontiguousarray(np.moveaxis(offsets, 2, 0))).reshape(2, -1).T
    return -_splatted(offsets, flow_targets(offsets), grid)


def _origin_offsets(window: Sequence[Observation], place: int, frames: int) -> FloatArray | None:
    """Offset ``(H', W', 2)`` of each pixel to where it was so many frames before, along the flow.

    The chain ends where no flow is known; None where there is none at all.
    """
    flow = window[place].flow
    if flow is None or frames < 1:
        return None
    where = flow_targets(flow)
    start = where - flow
    for back in range(1, frames):
        flow = window[place - back].flow
        if flow is None:
            break
        where = where + cv2.remap(flow, where, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(where - start, np.float32)


def _splatted(values: FloatArray, where: FloatArray, grid: PatchGrid) -> FloatArray:
    """Means ``(N, 2)`` over cells of values ``(H', W', 2)`` that lie at other positions ``(H', W', 2)``."""
    height, width = values.shape[:2]
    rows, columns = grid.grid_hw
    column = (where[..., 0] * columns / width).astype(np.int64).clip(0, columns - 1)
    row = (where[..., 1] * rows / height).astype(np.int64).clip(0, rows - 1)
    cell = (row * columns + column).ravel()
    counts = np.maximum(np.bincount(cell, minlength=rows * columns), 1)
    sums = [np.bincount(cell, values[..., axis].ravel(), rows * columns) for axis in range(2)]
    return np.asarray(np.stack(sums, axis=1) / counts[:, None], np.float32)


def _centered(rows: FloatArray, center: FloatArray) -> FloatArray:
    return normalize_rows(rows - center)


def _grown(cells: BoolArray, grid_hw: tuple[int, int]) -> BoolArray:
    """Cells ``(N,)`` and their neighbors, which share pixels with them."""
    image = cells.reshape(grid_hw).astype(np.uint8)
    return np.asarray(cv2.dilate(image, np.ones((3, 3), np.uint8)).ravel() > 0, bool)


def _stands_out(saliency: FloatArray, moving: FloatArray) -> bool:
    """Whether the cells that a further round found are salient and move as objects do."""
    return bool(len(saliency)) and float(saliency.mean()) * (0.5 + float(moving.mean())) >= MIN_EVIDENCE


class Proposer:
    """Proposes objects in every so many frames, from the frames before (at a shot's start, those after)."""

    def __init__(self, every: int) -> None:
        """Propose in every ``every``-th frame of a shot; 0 = never."""
        self._every = every
        self._waited = 0
        self._dropped = 0
        self._frames = 0

    def state(self) -> State:
        """All that later frames depend on."""
        return {"waited": self._waited, "dropped": self._dropped, "frames": self._frames}

    def restore(self, state: State) -> None:
        """Continue from a :meth:`state`."""
        self._waited, self._dropped, self._frames = state["waited"], state["dropped"], state["frames"]

    def report(self) -> dict[str, int]:
        """Counts for ``run.json``."""
        return {"frames": self._frames, "dropped_too_small": self._dropped}

    def propose(
        self, window: Sequence[Observation], place: int, grid: PatchGrid, codebook: Codebook, known: BoolArray
    ) -> Regions | None:
        """The proposals of a frame of a shot, None where none are due.

        Args:
            window: Consecutive frames of the shot.
            place: Which of them; each frame comes once, in order.
            grid: Where the cells lie.
            codebook: Whose foreground in the other frames is known.
            known: bool ``(h, w)``, the frame's own foreground, without what stands still.
        """
        if not self._every or not self._due():
            return None
        explained = [codebook.logits(seen.rows) > 0 for seen in window]
        explained[place] = known.ravel()
        self._frames += 1
        rounds = FurtherRounds.fit(window, explained, grid.grid_hw)
        regions, dropped = propose_objects(rounds, window, place, grid, known.ravel())
        self._dropped += dropped
        return regions

    def start_shot(self) -> None:
        """The next frame is the first of a shot, and proposals are due in it."""
        self._waited = 0

    def _due(self) -> bool:
        due = self._waited == 0
        self._waited = (self._waited + 1) % self._every
        return due
