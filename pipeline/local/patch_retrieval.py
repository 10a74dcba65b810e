"""Finding the patches of changed images again among those of the unchanged ones.

Source: Analyzing Local Representations of Self-supervised Vision Transformers (2024), patch retrieval: patches of
objects in a shifted, rotated, scaled, blurred or noisy image ask for their nearest patch among all patches of the
set. The answer is the same patch, another one of the same category, of the same supercategory, background, or
something else. What the paper leaves open, and what is done here:

- An answer is the *same patch* if it is from the same image and holds the center of the query. Where the center
  lies on the border of two patches, either is right.
- Category and supercategory include the same patch, so the shares are nested.
- The upper bounds are what a perfect search could reach: for the same patch, the share of queries whose center is
  still inside the unchanged image; for categories, the share of queries for which the gallery has one of that
  category. ``overlap`` is the share of the query's area that its same patch shows: content that the unchanged
  image simply does not have in one patch.
- Queries are patches whose majority is an object; where a change brings in pixels from outside the image they have
  no label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt
import torch

from pipeline.core.arrays import FloatArray, IntArray
from pipeline.core.errors import LabelFileError
from pipeline.core.grid import PatchGrid
from pipeline.local.heads import Metric, exact_index, search
from pipeline.local.labeled_set import IGNORED, LabelClass, LabeledImage, LabeledSet
from pipeline.local.patch_features import Describer, FeatureName
from pipeline.local.patches import class_counts, majority
from pipeline.local.perturbations import Geometric, Photometric, inverse
from pipeline.local.probing import channel_variance, kept_after

Change = Photometric | Geometric
_SUBPIXELS = 8
_ON_THE_BORDER = 1e-6


@dataclass(slots=True)
class RetrievalCounts:
    """Answers to queries of one kind of change.

    Attributes:
        queries: All of them.
        same_patch: Answered with the same patch.
        category: Answered with a patch of the same category, the same patch included.
        supercategory: Answered with a patch of the same supercategory, the category included.
        background: Answered with background.
        patch_bound: Queries that have a same patch.
        category_bound: Queries for which there is a patch of their category.
        supercategory_bound: The same for the supercategory.
        overlap: Sum of the shares of the query's area that its same patch shows, of those that have one.
    """

    queries: int = 0
    same_patch: int = 0
    category: int = 0
    supercategory: int = 0
    background: int = 0
    patch_bound: int = 0
    category_bound: int = 0
    supercategory_bound: int = 0
    overlap: float = 0.0

    def add(self, other: RetrievalCounts) -> None:
        """Take in more answers."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def shares(self) -> dict[str, float]:
        """Everything as a share of the queries; the overlap as a mean over those that have a same patch."""
        names = [one.name for one in fields(self) if one.name not in ("queries", "overlap")]
        found = {name: getattr(self, name) / self.queries if self.queries else float("nan") for name in names}
        found["overlap"] = self.overlap / self.patch_bound if self.patch_bound else float("nan")
        return found


@dataclass(frozen=True, slots=True)
class RetrievalKey:
    """What counts belong to.

    Attributes:
        feature: The feature's name.
        change: The change of the query's image.
        excluded: Whether the query's own image is left out of the gallery.
        removed: High-variance channels left out.
    """

    feature: str
    change: str
    excluded: bool
    removed: int


@dataclass(frozen=True, slots=True)
class Gallery:
    """All patches of the unchanged images, in one feature.

    Attributes:
        rows: float32 ``(N, C)``.
        labels: int64 ``(N,)``, a class or :data:`IGNORED`.
        ranges: Where the patches of every image are.
        grids: Where they lie on it.
    """

    rows: FloatArray
    labels: IntArray
    ranges: tuple[range, ...]
    grids: tuple[PatchGrid, ...]


@dataclass(frozen=True, slots=True)
class Queries:
    """The patches of one changed image that ask.

    Attributes:
        rows: float32 ``(Q, C)``.
        labels: int64 ``(Q,)``.
        cells: float64 ``(Q, 2)``: where their centers were, in continuous cells (column, row) of the unchanged
            image.
        overlap: float64 ``(Q,)``: share of their area that lies in the cell of their center.
    """

    rows: FloatArray
    labels: IntArray
    cells: npt.NDArray[np.float64]
    overlap: npt.NDArray[np.float64]


def origins(change: Change, grid: PatchGrid) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Where the cells of a changed image come from.

    Args:
        change: What was done to the image as the model sees it.
        grid: The cells, on the image as the model sees it.

    Returns:
        Centers in continuous cells, float64 ``(N, 2)`` as (column, row), and the share of each cell's area that
        comes from the cell of its center, float64 ``(N,)``.
    """
    centers = grid.cell_centers().reshape(-1, 2).double().numpy()
    steps = (np.arange(_SUBPIXELS) + 0.5) / _SUBPIXELS - 0.5
    inside = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(1, -1, 2) * np.array(grid.stride_px[::-1])
    points = centers[:, None] + inside
    if isinstance(change, Geometric):
        matrix = change.matrix(grid.image_hw)
        centers, points = inverse(matrix, centers), inverse(matrix, points)
    center_cells = grid.pixels_to_cells(torch.from_numpy(centers)).numpy()
    point_cells = grid.pixels_to_cells(torch.from_numpy(points)).numpy()
    same = np.floor(point_cells) == np.floor(center_cells + _ON_THE_BORDER)[:, None]
    return center_cells, same.all(axis=2).mean(axis=1)


def judge(
    queries: Queries,
    answers: IntArray,
    gallery: Gallery,
    number: int,
    classes: Sequence[LabelClass],
    *,
    excluded: bool,
) -> RetrievalCounts:
    """Count the answers of one image's queries.

    Args:
        queries: Of the image.
        answers: int64 ``(Q,)``: rows of the gallery; -1 for none.
        gallery: What was searched.
        number: Which of the gallery's images it is.
        classes: By class index.
        excluded: Whether the image itself was left out of the search.
    """
    grid, own = gallery.grids[number], gallery.ranges[number]
    groups = np.array([c.supercategory for c in classes])
    is_background = np.array([c.is_background for c in classes])
    columns, rows = queries.cells.T
    inside = (columns >= 0) & (rows >= 0) & (columns < grid.grid_hw[1]) & (rows < grid.grid_hw[0])
    local = answers - own.start
    answer_rows, answer_columns = np.divmod(local, grid.grid_hw[1])
    reach = 0.5 + _ON_THE_BORDER
    near = (np.abs(columns - answer_columns - 0.5) <= reach) & (np.abs(rows - answer_rows - 0.5) <= reach)
    same = (answers >= own.start) & (answers < own.stop) & near & inside
    found = np.where(answers >= 0, gallery.labels[answers], IGNORED)
    known = found >= 0
    same_class = same | (known & (found == queries.labels))
    same_group = same_class | (known & (groups[found] == groups[queries.labels]))
    present = gallery.labels.copy()
    if excluded:
        present[own.start : own.stop] = IGNORED
    there = np.unique(present[present >= 0])
    return RetrievalCounts(
        queries=len(queries.labels),
        same_patch=int(same.sum()),
        category=int(same_class.sum()),
        supercategory=int(same_group.sum()),
        background=int((known & is_background[found] & ~same).sum()),
        patch_bound=0 if excluded else int(inside.sum()),
        category_bound=int(np.isin(queries.labels, there).sum()),
        supercategory_bound=int(np.isin(groups[queries.labels], groups[there]).sum()),
        overlap=0.0 if excluded else float(queries.overlap[inside].sum()),
    )


@dataclass(slots=True)
class PatchRetrieval:
    """Builds the gallery of a set and asks it with every changed image.

    Attributes:
        describer: Gives the features.
        data: The images.
        changes: What is done to the images that ask.
        removed: Numbers of high-variance channels that are left out.
        metric: The distance.
        on_image: Called after every image that was described.
        counts: The answers, filled by :meth:`run`.
    """

    describer: Describer
    data: LabeledSet
    changes: Sequence[Change]
    removed: Sequence[int] = (0,)
    metric: Metric = "euclidean"
    on_image: Callable[[], object] = lambda: None
    counts: dict[RetrievalKey, RetrievalCounts] = field(default_factory=dict)

    def run(self) -> dict[RetrievalKey, RetrievalCounts]:
        """Everything; returns :attr:`counts`.

        Raises:
            LabelFileError: No patch of any image is an object.
            InputError: An image or its labels cannot be read.
        """
        galleries = self._galleries()
        searchers = {
            (feature, removed): _Searcher(gallery, removed, self.metric)
            for feature, gallery in galleries.items()
            for removed in self.removed
        }
        for number, image in enumerate(self.data.images):
            for change in self.changes:
                asked = self._queries(image, change)
                for (feature, removed), searcher in searchers.items():
                    self._ask(feature, removed, searcher, asked[feature], number, change)
        return self.counts

    def _galleries(self) -> dict[FeatureName, Gallery]:
        rows: dict[FeatureName, list[FloatArray]] = {feature: [] for feature in self.describer.features}
        labels: dict[FeatureName, list[IntArray]] = {feature: [] for feature in self.describer.features}
        grids: dict[FeatureName, list[PatchGrid]] = {feature: [] for feature in self.describer.features}
        for image in self.data.images:
            pixels, truth = image.load()
            for feature, patches in self.describer(pixels).items():
                rows[feature].append(patches.rows)
                labels[feature].append(majority(class_counts(truth, patches.grid, len(self.data.classes))))
                grids[feature].append(patches.grid)
            self.on_image()
        found = {}
        for feature in self.describer.features:
            ends = np.cumsum([0, *(len(r) for r in rows[feature])]).tolist()
            ranges = tuple(range(a, b) for a, b in pairwise(ends))
            every = np.concatenate(labels[feature])
            if not self._is_object(every).any():
                raise LabelFileError("no patch of any image is an object; use a larger --short-side or other data")
            found[feature] = Gallery(np.concatenate(rows[feature]), every, ranges, tuple(grids[feature]))
        return found

    def _is_object(self, labels: IntArray) -> npt.NDArray[np.bool_]:
        is_background = np.array([c.is_background for c in self.data.classes])
        return np.asarray((labels >= 0) & ~is_background[labels], bool)

    def _queries(self, image: LabeledImage, change: Change) -> dict[FeatureName, Queries]:
        pixels, truth = image.load()
        seen_hw = self.describer.resized(pixels).shape[:2]
        if isinstance(change, Geometric):
            described = self.describer(pixels, change.of_image)
            truth = change.of_labels(
                cv2.resize(truth, (seen_hw[1], seen_hw[0]), interpolation=cv2.INTER_NEAREST_EXACT)
            )
        else:
            described = self.describer(pixels, lambda seen: change(seen, image.name))
        self.on_image()
        found = {}
        for feature, patches in described.items():
            on_truth = PatchGrid.covering((truth.shape[0], truth.shape[1]), patches.grid.grid_hw)
            labels = majority(class_counts(truth, on_truth, len(self.data.classes)))
            asks = self._is_object(labels)
            cells, overlap = origins(change, PatchGrid.covering((seen_hw[0], seen_hw[1]), patches.grid.grid_hw))
            found[feature] = Queries(patches.rows[asks], labels[asks], cells[asks], overlap[asks])
        return found

    def _ask(
        self,
        feature: FeatureName,
        removed: int,
        searcher: _Searcher,
        queries: Queries,
        number: int,
        change: Change,
    ) -> None:
        for excluded in (False, True):
            key = RetrievalKey(str(feature), str(change), excluded, removed)
            counts = self.counts.setdefault(key, RetrievalCounts())
            if not len(queries.labels):
                continue
            own = searcher.gallery.ranges[number] if excluded else None
            answers = searcher.nearest(queries.rows, own)
            counts.add(judge(queries, answers, searcher.gallery, number, self.data.classes, excluded=excluded))


class _Searcher:
    """A gallery with some channels left out."""

    def __init__(self, gallery: Gallery, removed: int, metric: Metric) -> None:
        self.gallery, self._metric = gallery, metric
        self._kept = kept_after(channel_variance(gallery.rows), removed)
        self._index = exact_index(self._chosen(gallery.rows), metric)

    def _chosen(self, rows: FloatArray) -> FloatArray:
        return rows if self._kept is None else np.ascontiguousarray(rows[:, self._kept])

    def nearest(self, rows: FloatArray, without: range | None) -> IntArray:
        return search(self._index, self._chosen(rows), 1, self._metric, without=without)[:, 0]
