"""The numbers that parts keep through a video."""

from __future__ import annotations

import numpy as np

from pipeline.core.arrays import FloatArray, IntArray
from pipeline.core.kmeans import assign, match_centroids
from pipeline.core.state import State

MAX_PARTS = 255
_MIN_MEMBER_SHARE = 0.02
_RECALL_RATIO = 1.4


class PartNumbers:
    """Numbers the parts of each fit and remembers the descriptor of each number.

    Invariant: a number means one part; a part that comes back after a refit, however late, gets its number back.
    Numbers go up to 255, the most an indexed image holds; after that the least recently used one is used again.
    """

    def __init__(self, match_distance: float) -> None:
        """Parts nearer than this squared distance, in multiples of the scene's spread, are the same part."""
        self._match_distance = match_distance
        self.reset()

    def reset(self) -> None:
        """Forget all numbers."""
        self.current: IntArray = np.zeros(0, np.int64)
        self.exhausted = False
        self._known: dict[int, FloatArray] = {}

    def state(self) -> State:
        """All that later frames depend on."""
        return {
            "current": self.current,
            "exhausted": self.exhausted,
            "known": [[number, centroid] for number, centroid in self._known.items()],
        }

    def restore(self, state: State) -> None:
        """Continue from a :meth:`state`."""
        self.current, self.exhausted = state["current"], state["exhausted"]
        self._known = dict(state["known"])

    @property
    def highest(self) -> int:
        """The largest number assigned so far; 0 before the first."""
        return max(self._known, default=0)

    def recall(self, rows: FloatArray, parts: FloatArray) -> FloatArray:
        """Known parts in place of newly fitted ones, where they describe the foreground almost as well.

        A fit on other frames of the same things divides them differently, and its parts could not keep their
        numbers. On six sequences the mean squared distance of mirrored frames to the parts known from the plain
        ones is 1.04 to 1.18 times that to parts fitted on them; to those of other sequences, 1.9 times or more.

        Args:
            rows: float32 ``(N, d)``, the foreground.
            parts: float32 ``(P, d)``, fitted on it.

        Returns:
            The known parts that hold enough of the rows, or ``parts``.
        """
        if not self._known or not len(parts) or not len(rows):
            return parts
        known = np.stack(list(self._known.values()))
        members = np.bincount(assign(rows, known)[0], minlength=len(known))
        known = known[members >= _MIN_MEMBER_SHARE * len(rows)]
        error, fitted = (float(assign(rows, centroids)[1].mean()) for centroids in (known, parts))
        return known if error <= _RECALL_RATIO * fitted else parts

    def assign(self, parts: FloatArray, spread: float = 1.0) -> int:
        """Number the parts of a new fit; sets ``current`` and returns how many were known already.

        Args:
            parts: float32 ``(P, C)``.
            spread: Mean squared distance of the scene's descriptors to their mean.
        """
        old = list(self._known)
        numbers = np.full(len(parts), -1, np.int64)
        if old and len(parts):
            known = np.stack([self._known[number] for number in old])
            matched = match_centroids(known, parts, max_distance=self._match_distance * spread)
            numbers = np.array([old[row] if row >= 0 else -1 for row in matched], np.int64)
        kept = int((numbers >= 0).sum())
        for place in np.flatnonzero(numbers < 0):
            numbers[place] = self._fresh({int(n) for n in numbers if n > 0})
            self._known[int(numbers[place])] = parts[place]
        self.current = numbers
        self.follow(parts)
        return kept

    def follow(self, parts: FloatArray) -> None:
        """Remember the present descriptors of the current parts."""
        for number, centroid in zip(self.current, parts, strict=True):
            self._known.pop(int(number), None)  # so that the dictionary's order is that of use
            self._known[int(number)] = centroid

    def _fresh(self, taken: set[int]) -> int:
        if len(self._known) < MAX_PARTS:
            return self.highest + 1
        self.exhausted = True
        oldest = next(number for number in self._known if number not in taken)
        del self._known[oldest]
        return oldest
