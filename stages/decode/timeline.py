"""Which place in the source each packet of a stream has, from its presentation time.

Packets come in decoding order. A heap of the next few sorts them by time, and each gets the next index. A packet
that is missing in the file shows only in the times: if there is a sign of damage close by and the time jumps by
more than one and a half frames, the index jumps with it. Without such a sign a jump is a variable frame rate, and
the index goes on by one.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass

REORDER_WINDOW = 24
"""Packets that are sorted by time at once; H.264 and HEVC reorder at most 16."""


SHORTEST_JUMP_FRAMES = 1.5
"""Frames between two times from which on packets can be missing."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a packet belongs in the source.

    Attributes:
        pts: Presentation time.
        index: Rank by time, with the packets that are missing in the file.
        lost: How many packets before it are missing in the file.
    """

    pts: int
    index: int
    lost: int


class Timeline:
    """Index by presentation time. Memory does not grow: :meth:`forget` drops what is behind.

    ``first_pts`` is the time of index 0, ``last`` the last place given; None before the first. ``lost_at_start``
    may be set before the first packet comes, if the file shows that packets are missing before it.

    Args:
        frame_pts: Nominal duration of a frame in the units of the times.
        longest_jump_pts: A longer jump is a wrong time and moves the index by one.
        shortest_jump_frames: A shorter jump is not taken for missing packets.
    """

    def __init__(
        self, frame_pts: float, longest_jump_pts: float, shortest_jump_frames: float = SHORTEST_JUMP_FRAMES
    ) -> None:
        self._frame_pts = frame_pts
        self._longest_jump_pts = longest_jump_pts
        self._shortest_jump_pts = shortest_jump_frames * frame_pts
        self._waiting: list[tuple[int, int]] = []
        self._suspects: deque[int] = deque()
        self._added = 0
        self._placed: deque[Place] = deque()
        self._by_pts: dict[int, Place] = {}
        self.lost_at_start = 0
        self.first_pts: int | None = None
        self.last: Place | None = None

    def add(self, pts: int, *, suspect: bool = False) -> None:
        """The next packet in decoding order.

        Args:
            pts: Presentation time. One that is not after the last placed one is wrong, and stays without a place.
            suspect: Data may be missing right before this packet or in it.
        """
        self._added += 1
        if suspect:
            self._suspects.append(self._added)
        if self.last is not None and pts <= self.last.pts:
            return
        heapq.heappush(self._waiting, (pts, self._added))
        while len(self._waiting) > REORDER_WINDOW:
            self._place_next()

    def finish(self) -> None:
        """There are no more packets: place those that wait."""
        while self._waiting:
            self._place_next()

    def place_of(self, pts: int) -> Place | None:
        """The place of the packet with this time; None if it has none, or not yet."""
        return self._by_pts.get(pts)

    def first_from(self, pts: int) -> Place | None:
        """The first place at or after a time."""
        return next((place for place in self._placed if place.pts >= pts), None)

    def forget(self, index: int) -> None:
        """Drop all packets up to this index."""
        while self._placed and self._placed[0].index <= index:
            self._by_pts.pop(self._placed.popleft().pts, None)

    def _place_next(self) -> None:
        pts, number = heapq.heappop(self._waiting)
        last = self.last
        if last is None:
            self.first_pts = pts - round(self.lost_at_start * self._frame_pts)
            place = Place(pts, self.lost_at_start, self.lost_at_start)
        elif pts == last.pts:
            return
        else:
            step = self._step(pts - last.pts, number)
            place = Place(pts, last.index + step, last.lost + step - 1)
        self.last = self._by_pts[pts] = place
        self._placed.append(place)

    def _step(self, jump_pts: int, number: int) -> int:
        while self._suspects and self._suspects[0] < number - 2 * REORDER_WINDOW:
            self._suspects.popleft()
        near = any(abs(suspect - number) <= REORDER_WINDOW for suspect in self._suspects)
        if not near or not self._shortest_jump_pts < jump_pts <= self._longest_jump_pts:
            return 1
        return max(1, round(jump_pts / self._frame_pts))
