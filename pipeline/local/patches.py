"""From pixels to patches and back: the label of a patch, and the score of patch labels on pixels.

A patch's label is the majority of its pixels (Analyzing Local Representations of Self-supervised Vision
Transformers, 2024, few-shot patch classification). Each pixel belongs to the cell whose center is nearest, so
pixels are counted once also where cells do not tile the image.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from pipeline.core.arrays import IntArray
from pipeline.core.grid import PatchGrid
from pipeline.local.labeled_set import IGNORED, Labels

Counts = npt.NDArray[np.int64]


def cell_of_pixels(grid: PatchGrid) -> IntArray:
    """The row-major index of the cell nearest to every pixel: int64 ``(H, W)``."""
    height, width = grid.image_hw
    columns = grid.nearest_cells(torch.stack([torch.arange(width) + 0.5, torch.zeros(width)], dim=1))[:, 0]
    rows = grid.nearest_cells(torch.stack([torch.zeros(height), torch.arange(height) + 0.5], dim=1))[:, 1]
    return np.asarray((rows[:, None] * grid.grid_hw[1] + columns[None]).numpy(), np.int64)


def class_counts(labels: Labels, grid: PatchGrid, num_classes: int) -> Counts:
    """How many pixels of each class every cell has: int64 ``(h * w, num_classes + 1)``; ignored pixels last.

    Args:
        labels: int16 ``(H, W)``, the grid's image.
        grid: Where the cells lie.
        num_classes: Number of classes.
    """
    columns = num_classes + 1
    kind = np.where(labels == IGNORED, num_classes, labels).astype(np.int64)
    flat = (cell_of_pixels(grid) * columns + kind).ravel()
    return np.bincount(flat, minlength=grid.num_cells * columns).reshape(grid.num_cells, columns)


def majority(counts: Counts) -> IntArray:
    """The class with the most pixels of every cell, int64 ``(N,)``; the lowest of equals.

    :data:`IGNORED` where ignored pixels are more than those of any class.

    >>> majority(np.array([[2, 1, 0], [1, 3, 0], [1, 0, 3], [2, 2, 0]])).tolist()
    [0, 1, -1, 0]
    """
    best = counts.argmax(axis=1)
    return np.where(best == counts.shape[1] - 1, IGNORED, best)


@dataclass(slots=True)
class Confusion:
    """Pixels by true class (row) and predicted class (column).

    Attributes:
        table: int64 ``(C, C)``.
    """

    num_classes: int
    table: Counts = field(init=False)

    def __post_init__(self) -> None:
        self.table = np.zeros((self.num_classes, self.num_classes), np.int64)

    def add(self, counts: Counts, predicted: IntArray) -> None:
        """Take in an image: every pixel is predicted as its cell is; ignored pixels do not count.

        Args:
            counts: From :func:`class_counts`.
            predicted: int64 ``(h * w,)``, the class of every cell.
        """
        np.add.at(self.table.T, predicted, counts[:, : self.num_classes])

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels that are right; NaN without any."""
        total = self.table.sum()
        return float(np.trace(self.table) / total) if total else float("nan")

    @property
    def iou(self) -> npt.NDArray[np.float64]:
        """Intersection over union by class, float64 ``(C,)``; NaN for a class neither there nor predicted."""
        hits = np.diagonal(self.table).astype(np.float64)
        union = self.table.sum(axis=0) + self.table.sum(axis=1) - hits
        ratio: npt.NDArray[np.float64] = np.divide(
            hits, union, out=np.full(self.num_classes, np.nan), where=union > 0
        )
        return ratio

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that are there or predicted; NaN without any."""
        values = self.iou[~np.isnan(self.iou)]
        return float(values.mean()) if len(values) else float("nan")
