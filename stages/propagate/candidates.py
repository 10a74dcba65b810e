"""Regions that may become objects: kept until they have been seen often enough, or were missed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import FloatArray
from pipeline.core.state import State

Kind = Literal["new", "split", "growth"]

MATCH_IOU = 0.3
"""IoU of the cells of two sightings from which they are the same candidate."""

MATCH_COSINE = 0.7
"""Without that overlap, cosine of their descriptors from which they are, if they are near each other."""

NEAR_SIZES = 1.5
"""Distance of their centers, in roots of the area, up to which two sightings are near each other."""

EXTRA_SIGHTINGS = {"new": 0, "split": 1, "growth": 1}
"""Further sightings that a candidate which changes a known object needs."""


class Region(Protocol):
    """What a candidate is made from; see :class:`stages.propagate.discovery.Proposal`."""

    @property
    def pixels(self) -> npt.NDArray[np.bool_]: ...  # noqa: D102

    @property
    def cells(self) -> npt.NDArray[np.bool_]: ...  # noqa: D102

    @property
    def descriptor(self) -> FloatArray: ...  # noqa: D102


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A region that may be an object.

    Attributes:
        kind: What it may be: a new object, a piece that splits off, or a larger mask of an object.
        parent: Id of the object it is split from or surrounds; 0 for new ones.
        cells: bool ``(h, w)``, where it was last seen.
        descriptor: float32 ``(C,)``, of unit length.
        pixels: bool ``(H, W)`` in the frame being worked on; None in a state.
        sightings: Discoveries that have seen it.
    """

    kind: Kind
    parent: int
    cells: npt.NDArray[np.bool_]
    descriptor: FloatArray
    pixels: npt.NDArray[np.bool_] | None = None
    sightings: int = 1

    @classmethod
    def of(cls, region: Region, kind: Kind, parent: int) -> Candidate:
        """A candidate seen for the first time."""
        return cls(kind, parent, region.cells, region.descriptor, region.pixels)

    def is_again(self, later: Candidate) -> bool:
        """Whether a later sighting shows this candidate."""
        if (self.kind, self.parent) != (later.kind, later.parent) or self.cells.shape != later.cells.shape:
            return False
        union = np.count_nonzero(self.cells | later.cells)
        if np.count_nonzero(self.cells & later.cells) >= MATCH_IOU * union:
            return True
        centers = [np.argwhere(cells).mean(axis=0) for cells in (self.cells, later.cells)]
        size = float(np.sqrt(max(self.cells.sum(), later.cells.sum())))
        near = float(np.linalg.norm(centers[0] - centers[1])) <= NEAR_SIZES * size
        return near and float(self.descriptor @ later.descriptor) >= MATCH_COSINE


@dataclass(slots=True)
class Candidates:
    """The candidates of the latest discovery; one that the next discovery does not see is dropped.

    Attributes:
        dropped: How many were, so far.
    """

    dropped: int = 0
    _waiting: list[Candidate] = field(default_factory=list)

    def update(
        self, seen: Sequence[Candidate], sightings: int, *, at_once: bool = False
    ) -> list[tuple[Candidate, npt.NDArray[np.bool_]]]:
        """Take the candidates of the next discovery.

        Args:
            seen: The candidates, with pixels.
            sightings: How often a new one must be seen.
            at_once: Confirm all new ones now.

        Returns:
            The confirmed ones, which are forgotten here, with their pixels.
        """
        waiting, confirmed, left = list(self._waiting), [], []
        for candidate in seen:
            earlier = next((c for c in waiting if c.is_again(candidate)), None)
            if earlier is not None:
                waiting.remove(earlier)
                candidate = replace(candidate, sightings=earlier.sightings + 1)
            needed = sightings + EXTRA_SIGHTINGS[candidate.kind]
            if candidate.pixels is not None and (at_once or candidate.sightings >= needed):
                confirmed.append((candidate, candidate.pixels))
            else:
                left.append(replace(candidate, pixels=None))
        self.dropped += len(waiting)
        self._waiting = left
        return confirmed

    def state(self) -> State:
        """All that later discoveries depend on."""
        waiting = [[c.kind, c.parent, c.cells, c.descriptor, c.sightings] for c in self._waiting]
        return {"dropped": self.dropped, "waiting": waiting}

    def restore(self, state: State) -> None:
        """Go on from a :meth:`state`."""
        self.dropped = state["dropped"]
        self._waiting = [
            Candidate(kind, parent, cells, descriptor, None, sightings)
            for kind, parent, cells, descriptor, sightings in state["waiting"]
        ]
