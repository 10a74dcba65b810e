"""Splitting a foreground map into object instances.

Connected cells are one instance, and components separated by an occluder are merged where their mean descriptors
are similar.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pipeline.core.arrays import FloatArray, normalize_rows

BoolArray = npt.NDArray[np.bool_]
LabelArray = npt.NDArray[np.int32]

_FOUR = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)
_EIGHT = np.ones((3, 3), bool)


def split_instances(
    foreground: npt.NDArray[np.floating] | BoolArray,
    descriptors: npt.NDArray[np.floating],
    *,
    threshold: float = 0.5,
    min_cells: int = 4,
    min_share: float = 0.1,
    merge_similarity: float = 0.6,
    merge_gap_cells: float = 6.0,
    max_instances: int = 10,
) -> LabelArray:
    """Instances of the foreground of one frame.

    Connected components (8-connectivity) of the foreground; components whose mean descriptors are similar and
    whose gap is small are one instance (an object behind a pole); components smaller than ``min_cells`` cells,
    or than ``min_share`` of the largest, that joined nothing are dropped.

    Args:
        foreground: ``(h, w)``, bool, or the probability of foreground in [0, 1].
        descriptors: ``(C, h, w)``, any scale.
        threshold: Foreground is above this.
        min_cells: Smallest instance in cells.
        min_share: Smallest instance relative to the largest.
        merge_similarity: Cosine of two components' mean descriptors from which they are one instance.
        merge_gap_cells: Largest distance in cells between components that may be joined.
        max_instances: The largest this many are kept.

    Returns:
        int32 ``(h, w)``: 0 background, instances numbered from 1 by falling area.

    >>> two = np.zeros((3, 7)); two[:, :2] = 1; two[:, 5:] = 1
    >>> values = np.stack([two * 0 + 1, two * 0]); values[:, :, 5:] = [[[0]], [[1]]]
    >>> split_instances(two, values, min_cells=1)[0].tolist()
    [1, 1, 0, 0, 0, 2, 2]
    """
    mask = np.asarray(foreground) > threshold if np.asarray(foreground).dtype != bool else np.asarray(foreground)
    pieces, count = ndimage.label(mask, structure=_EIGHT)
    if count == 0:
        return np.zeros(mask.shape, np.int32)
    unit = normalize_rows(descriptors.reshape(descriptors.shape[0], -1).T)
    owner = _joined(pieces, count, unit, merge_similarity, merge_gap_cells)
    merged = owner[pieces]
    areas = np.bincount(merged.ravel(), minlength=count + 1)
    areas[0] = 0
    smallest = max(min_cells, min_share * areas.max())
    kept = [label for label in np.argsort(-areas, kind="stable") if areas[label] >= smallest][:max_instances]
    numbers = np.zeros(count + 1, np.int32)
    numbers[kept] = np.arange(1, len(kept) + 1)
    return np.asarray(numbers[merged], np.int32)


def _joined(
    pieces: npt.NDArray[np.int32], count: int, unit: FloatArray, similarity: float, gap_cells: float
) -> npt.NDArray[np.int32]:
    """For each component, the component it is one instance with (itself when alone). Index 0 is background."""
    flat = pieces.ravel()
    means = normalize_rows(np.stack([unit[flat == label].mean(axis=0) for label in range(1, count + 1)]))
    owner = np.arange(count + 1, dtype=np.int32)
    cosine = means @ means.T
    for first in range(1, count + 1):
        if count == 1:
            break
        distance = ndimage.distance_transform_edt(pieces != first)
        for second in range(first + 1, count + 1):
            near = distance[pieces == second].min() <= gap_cells
            if near and cosine[first - 1, second - 1] >= similarity:
                owner[owner == owner[second]] = owner[first]
    return owner
