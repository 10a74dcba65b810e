"""Which place in the source each packet of a stream has, from its presentation time.

Packets come in decoding order. A heap of the next few sorts them by time, and each gets the next index. A packet that
is missing in the file shows only in the times: if there is a sign of damage close by and the time jumps by more than
one and a half frames, the index jumps with it. Without such a sign a jump is a variable frame rate, and the index
goes on by one.
"""

from __future__ import annotations

import heapq
from collections import deque

REORDER_WINDOW = 24
"""Packets that are sorted by time at once; H.264 and HEVC reorder at most 16."""


class Timeline:
    """Index by presentation time. Memory does not grow: :meth:`forget` drops what is behind.

    ``first_pts`` is the time of the packet with index 0, None until it has its place.

    Args:
        frame_pts: Nominal duration of a frame in the units of the times.
        longest_jump_pts: A longer jump is a wrong time and moves the index by one.
    """

    def __init__(self, frame_pts: float, longest_jump_pts: float) -> None:
        self._frame_pts = frame_pts
        self._longest_jump_pts = longest_jump_pts
        self._waiting: list[tuple[int, int]] = []
        self._suspects: deque[int] = deque()
        self._added = 0
        self._placed: deque[tuple[int, int]] = deque()
        self._index_of: dict[int, int] = {}
        self._last: tuple[int, int] | None = None
        self.first_pts: int | None = None

    @property
    def last(self) -> tuple[int, int] | None:
        """Time and index of the last packet that has its place."""
        return self._last

    def add(self, pts: int, *, suspect: bool = False) -> None:
        """The next packet in decoding order.

        Args:
            pts: Presentation time. One that is not after the last placed one is wrong, and stays without a place.
            suspect: Data may be missing right before this packet or in it.
        """
        self._added += 1
        if suspect:
            self._suspects.append(self._added)
        if self._last is not None and pts <= self._last[0]:
            return
        heapq.heappush(self._waiting, (pts, self._added))
        while len(self._waiting) > REORDER_WINDOW:
            self._place_next()

    def finish(self) -> None:
        """There are no more packets: place those that wait."""
        while self._waiting:
            self._place_next()

    def index_of(self, pts: int) -> int | None:
        """The index of the packet with this time; None if it has none, or not yet."""
        return self._index_of.get(pts)

    def first_from(self, pts: int) -> tuple[int, int] | None:
        """Time and index of the first placed packet at or after ``pts``."""
        return next((place for place in self._placed if place[0] >= pts), None)

    def forget(self, index: int) -> None:
        """Drop all packets up to this index."""
        while self._placed and self._placed[0][1] <= index:
            self._index_of.pop(self._placed.popleft()[0], None)

    def _place_next(self) -> None:
        pts, number = heapq.heappop(self._waiting)
        if self._last is None:
            index = 0
            self.first_pts = pts
        elif pts == self._last[0]:
            return
        else:
            index = self._last[1] + self._step(pts - self._last[0], number)
        self._last = (pts, index)
        self._index_of[pts] = index
        self._placed.append(self._last)

    def _step(self, jump_pts: int, number: int) -> int:
        while self._suspects and self._suspects[0] < number - 2 * REORDER_WINDOW:
            self._suspects.popleft()
        near = any(abs(suspect - number) <= REORDER_WINDOW for suspect in self._suspects)
        if not near or not 1.5 * self._frame_pts < jump_pts <= self._longest_jump_pts:
            return 1
        return max(1, round(jump_pts / self._frame_pts))
