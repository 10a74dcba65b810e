"""The objects of one video: their ids, and a summary per object whose size does not grow with the video.

Invariant: ids and their order never change; an object's position in ``ids`` plus 1 is its channel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from pipeline.core.resizing import id_areas
from pipeline.core.state import State
from stages.propagate.label_maps import IndexMask


@dataclass(slots=True)
class ObjectSummary:
    """What is kept of one object's history.

    Attributes:
        first_frame: Index of the frame in which it was first given or found.
        last_frame: Index of the latest frame in which it has pixels.
        frames: Frames from ``first_frame`` on.
        total_confidence: Sum of its confidence over them.
        min_confidence: The smallest.
        worst_frame: Index of the first frame that has it.
    """

    first_frame: int
    last_frame: int
    frames: int = 0
    total_confidence: float = 0.0
    min_confidence: float = 1.0
    worst_frame: int = 0

    def add(self, frame_index: int, confidence: float, *, present: bool) -> None:
        """Count one more frame."""
        if not self.frames or confidence < self.min_confidence:
            self.min_confidence, self.worst_frame = confidence, frame_index
        if present:
            self.last_frame = frame_index
        self.frames += 1
        self.total_confidence += confidence


@dataclass(slots=True)
class ObjectTable:
    """All objects known so far."""

    ids: tuple[int, ...] = ()
    _summaries: list[ObjectSummary] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def channels(self, ids: Iterable[int]) -> frozenset[int]:
        """The channels (from 1) of these objects."""
        return frozenset(self.ids.index(number) + 1 for number in ids)

    def add(self, ids: Iterable[int], frame_index: int) -> None:
        """Append the objects that are not known yet."""
        new = tuple(number for number in ids if number not in self.ids)
        self.ids += new
        self._summaries += [ObjectSummary(frame_index, frame_index) for _ in new]

    def update(self, frame_index: int, index_mask: IndexMask, confidence: Iterable[float]) -> None:
        """Add one frame to every object's summary."""
        if not self.ids:
            return
        areas = id_areas(index_mask)
        for number, summary, value in zip(self.ids, self._summaries, confidence, strict=True):
            summary.add(frame_index, value, present=bool(areas[number]))

    def report(self) -> list[dict[str, float]]:
        """One entry per object, for ``run.json``; confidence is 0 where an object has no pixels."""
        return [
            {
                "id": number,
                "first_frame": summary.first_frame,
                "last_frame": summary.last_frame,
                "frames": summary.frames,
                "mean_confidence": round(summary.total_confidence / max(summary.frames, 1), 3),
                "min_confidence": round(summary.min_confidence, 3),
                "worst_frame": summary.worst_frame,
            }
            for number, summary in zip(self.ids, self._summaries, strict=True)
        ]

    def state(self) -> State:
        """A copy as plain values."""
        return {"ids": list(self.ids), "summaries": [asdict(summary) for summary in self._summaries]}

    @classmethod
    def from_state(cls, state: State) -> ObjectTable:
        """The inverse of :meth:`state`."""
        return cls(tuple(state["ids"]), [ObjectSummary(**summary) for summary in state["summaries"]])
