"""Objects found without labels against the true ones, given the masks of both in every frame.

A true object counts when it covers a least share of the frame in enough frames and moves. Found objects and true
ones are matched one to one by the first frame in which their masks overlap well: the pair that does so earliest is
matched first, at equal frames the one that overlaps more. Recall is the share of the counting objects that are
matched; precision is the share of all found objects that are matched to any true object, so that a second id for
an object that has one already is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.tracking_counts import Counts
from pipeline.formats.masks import VOID, object_ids

IndexMask = npt.NDArray[np.uint8]

#: IoU of two masks from which a frame is a good one.
GOOD_IOU = 0.5
#: Share of the frame that a true object covers in enough frames to count.
MIN_SHARE = 0.01
#: Number of these frames.
MIN_FRAMES = 10
#: Share of the frame's diagonal that the center of a true object travels to count as one that moves.
MIN_TRAVEL = 0.02


@dataclass(frozen=True)
class FoundCounts(Counts):
    """Counts of objects; they add up over sequences.

    Attributes:
        true: True objects that are large, long and moving enough to count.
        true_found: Of them, those that were found.
        found: Found objects, all of them.
        found_right: Of them, those matched to a true object, counting or not.
    """

    true: int = 0
    true_found: int = 0
    found: int = 0
    found_right: int = 0

    @property
    def recall(self) -> float:
        """Share of the counting true objects that were found; 1 where there are none."""
        return self.true_found / self.true if self.true else 1.0

    @property
    def precision(self) -> float:
        """Share of the found objects that are true; 1 where none was found."""
        return self.found_right / self.found if self.found else 1.0


@dataclass(slots=True)
class _History:
    """What is known of one true object."""

    large_frames: int
    lowest: npt.NDArray[np.float64]
    highest: npt.NDArray[np.float64]

    def travel_px(self) -> float:
        """Diagonal of the box of all its centers."""
        return float(np.hypot(*(self.highest - self.lowest)))


class ObjectMatcher:
    """Compares found with true masks frame by frame; what is kept does not grow with the frames.

    >>> matcher = ObjectMatcher()
    >>> for shift in range(12):
    ...     truth = np.zeros((40, 60), np.uint8)
    ...     truth[5:15, shift : shift + 10] = 3
    ...     matcher.add(truth, np.where(truth, np.uint8(8), np.uint8(0)))
    >>> matcher.matches(), matcher.counts()
    ({8: 3}, FoundCounts(true=1, true_found=1, found=1, found_right=1))
    """

    def __init__(self) -> None:
        self._frame = 0
        self._image_hw = (1, 1)
        self._true: dict[int, _History] = {}
        self._found: set[int] = set()
        self._first_good: dict[tuple[int, int], tuple[int, float]] = {}

    def add(self, truth: IndexMask, found: IndexMask) -> None:
        """Take the masks of the next frame, both uint8 ``(H, W)``; in the truth 255 is void.

        Raises:
            ValueError: The two differ in size.
        """
        if truth.shape != found.shape:
            raise ValueError(f"true mask {truth.shape} and found mask {found.shape} differ in size")
        self._image_hw = (truth.shape[0], truth.shape[1])
        found = np.where(truth == VOID, np.uint8(0), found)
        overlap = np.bincount(256 * truth.ravel().astype(np.int64) + found.ravel(), minlength=65536)
        overlap = overlap.reshape(256, 256)
        for true_id in object_ids(truth):
            self._see(true_id, truth == true_id)
        for found_id in np.flatnonzero(overlap[:, 1:].sum(axis=0)) + 1:
            self._found.add(int(found_id))
            for true_id in object_ids(truth):
                common = overlap[true_id, found_id]
                union = overlap[true_id].sum() + overlap[:VOID, found_id].sum() - common
                if common >= GOOD_IOU * union:
                    good = (self._frame, -float(common / union))
                    self._first_good.setdefault((true_id, int(found_id)), good)
        self._frame += 1

    def matches(self) -> dict[int, int]:
        """The true object of each found one that has one."""
        matched: dict[int, int] = {}
        for true_id, found_id in sorted(self._first_good, key=lambda pair: (*self._first_good[pair], pair)):
            if found_id not in matched and true_id not in matched.values():
                matched[found_id] = true_id
        return matched

    def counting(self) -> tuple[int, ...]:
        """The ids of the true objects that count."""
        least_px = MIN_TRAVEL * float(np.hypot(*self._image_hw))
        return tuple(
            true_id
            for true_id, history in sorted(self._true.items())
            if history.large_frames >= MIN_FRAMES and history.travel_px() >= least_px
        )

    def counts(self) -> FoundCounts:
        """The counts of the sequence."""
        matched, counting = self.matches(), self.counting()
        found = sum(true_id in counting for true_id in matched.values())
        return FoundCounts(len(counting), found, len(self._found), len(matched))

    def _see(self, true_id: int, inside: npt.NDArray[np.bool_]) -> None:
        rows, columns = np.nonzero(inside)
        center = np.array([rows.mean(), columns.mean()])
        history = self._true.setdefault(true_id, _History(0, center, center))
        history.large_frames += len(rows) >= MIN_SHARE * inside.size
        history.lowest = np.minimum(history.lowest, center)
        history.highest = np.maximum(history.highest, center)


def mask_boxes(mask: IndexMask) -> list[tuple[int, tuple[float, float, float, float]]]:
    """Id and box in pixels of every object in an index mask; 255 is void.

    >>> mask = np.zeros((4, 6), np.uint8)
    >>> mask[1:3, 2:5] = 7
    >>> mask_boxes(mask)
    [(7, (2.0, 1.0, 5.0, 3.0))]
    """
    boxes = []
    for number in object_ids(mask):
        inside = mask == number
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
        boxes.append((number, box))
    return boxes
