"""Which detection continues which track: overlap, appearance, and the best one-to-one assignment of both.

Sources: Hungarian assignment on overlap as in SORT (Bewley et al. 2016, section 3.3); boxes widened before the
overlap as in C-BIoU (Yang et al. 2023, section 3.2, https://arxiv.org/abs/2211.14317), so that boxes which no
longer touch at a low frame rate can still be compared; appearance as the best cosine against a gallery as in
DeepSORT (Wojke et al. 2017, section 2.2, https://arxiv.org/abs/1703.07402).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

FORBIDDEN = -1.0
"""Similarity of a pair that may not be matched; valid ones are not negative."""


def widen(xyxy: npt.NDArray[np.floating], share: float) -> npt.NDArray[np.float64]:
    """Boxes ``(N, 4)`` grown by ``share`` of their width and height on every side.

    >>> widen(np.array([[10.0, 10.0, 20.0, 30.0]]), 0.5).tolist()
    [[5.0, 0.0, 25.0, 40.0]]
    """
    boxes = np.asarray(xyxy, np.float64)
    margin = (boxes[:, 2:] - boxes[:, :2]) * share
    return np.concatenate([boxes[:, :2] - margin, boxes[:, 2:] + margin], axis=1)


def same_category(first: Sequence[str], second: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which pairs may be matched, ``(N, M)``: equal categories, or one of the two unknown (empty)."""
    a = np.array(first, dtype=object).reshape(-1, 1)
    b = np.array(second, dtype=object).reshape(1, -1)
    allowed: npt.NDArray[np.bool_] = ((a == b) | (a == "") | (b == "")).astype(bool)
    return allowed


def assign(similarity: npt.NDArray[np.float64], minimum: float) -> list[tuple[int, int]]:
    """The one-to-one pairs with the largest total of ``similarity - minimum``, pairs below it never taken.

    Args:
        similarity: ``(N, M)``; :data:`FORBIDDEN` (any negative value) where a pair is impossible.
        minimum: Not negative; pairs below stay unmatched.

    Returns:
        (row, column) pairs, by row.

    >>> assign(np.array([[0.9, 0.8], [0.8, 0.1]]), 0.3)
    [(0, 1), (1, 0)]
    """
    if similarity.size == 0:
        return []
    # A pair that may not be taken costs as much as none at all, so it never pushes out an allowed one.
    gain = np.where(similarity >= max(minimum, 0.0), similarity - minimum + 1e-9, 0.0)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if gain[row, column] > 0]
