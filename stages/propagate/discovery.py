"""Objects found without labels: which proposals are new objects, known ones, returning ones, or nothing lasting.

A proposal (:attr:`PartMap.proposals`) that lies where a known object was propagated to corrects that object's
mask. Others are candidates: a candidate that is seen again becomes an object, with the id of an object that has
left if it looks like it, and with a new one otherwise. Parts of a known object that keep being proposed apart
become objects of their own, and a proposal that keeps surrounding an object (a body around a face) becomes its
mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.core.arrays import FloatArray, normalize_rows
from pipeline.core.records import Features, PartMap
from pipeline.core.state import State
from pipeline.formats.masks import VOID
from stages.propagate.candidates import Candidate, Candidates, Kind
from stages.propagate.instances import split_instances

KNOWN_SHARE = 0.5
"""A proposal of which known objects cover this share or more is not a new object."""

SOLE_SHARE = 0.8
"""A proposal is assigned to an object that has this share of what known objects cover of it."""

CORRECTION_IOU = 0.5
"""From this IoU on an object's proposals become its mask; below, either of the two may be wrong."""

PIECE_SHARE = 0.25
"""A proposal inside a known object is a piece that may be split off if it has this share of the object's area."""

HELD_SHARE = 0.7
"""A proposal surrounds an object of which it covers this share."""

RETURN_COSINE = 0.6
"""A candidate whose descriptor has this cosine to one of an object that has left is that object."""

SUPPORT_SHARE = 0.3
"""An object of which all proposals together cover less than this is not supported."""

UNSUPPORTED_LIMIT = 3
"""An object without support in so many discoveries in a row has left."""

GALLERY_SIZE = 5
"""Descriptors kept of each object; one with ``REDUNDANT_COSINE`` to the latest replaces it."""

REDUNDANT_COSINE = 0.97

_COUNTED = ("split", "grown", "returned", "left")

IndexMask = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Proposal:
    """One region that may be an object.

    Attributes:
        pixels: bool ``(H, W)``.
        cells: bool ``(h, w)``.
        descriptor: float32 ``(C,)``, its mean descriptor beyond the frame's, of unit length.
    """

    pixels: BoolArray
    cells: BoolArray
    descriptor: FloatArray


@dataclass(frozen=True, slots=True)
class Discovery:
    """What a discovery changes.

    Attributes:
        mask: uint8 ``(H, W)``, the objects with a new mask; 0 elsewhere.
        left: Ids of objects that are not in the frame any more.
    """

    mask: IndexMask
    left: tuple[int, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing changes."""
        return not self.left and not self.mask.any()


@dataclass(slots=True)
class ObjectFinder:
    """Turns proposals into objects and keeps what is needed to know them again.

    Invariant: what is kept is bounded by the number of objects (at most 254) and of proposals in a frame.

    Attributes:
        confirm_sightings: Discoveries in which a candidate must be seen to become an object.
    """

    confirm_sightings: int = 2
    _used: bool = False
    _candidates: Candidates = field(default_factory=Candidates)
    _galleries: dict[int, list[FloatArray]] = field(default_factory=dict)
    _unsupported: dict[int, int] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTED, 0))

    def find(self, parts: PartMap, features: Features, known: IndexMask, ids: Sequence[int]) -> Discovery:
        """The objects of a frame with proposals, or whose foreground is split into instances.

        Args:
            parts: The frame's proposals, or its foreground where it has none.
            features: Its features.
            known: uint8 ``(H, W)``, the objects known so far, as propagated to this frame.
            ids: Their ids, also of those that have left.

        Returns:
            The changes. New objects never take pixels of known ones, but those they are split from.
        """
        proposals = describe_proposals(parts, features)
        is_first = not ids
        next_id = max(ids, default=0) + 1
        mask = np.zeros(known.shape, np.uint8)
        found = self._correct(proposals, known, mask)
        sighted = self._candidates.update(found, self.confirm_sightings, at_once=is_first)
        for candidate, pixels in sighted:
            owner = self._id_for(candidate, known, ids, next_id)
            if owner >= VOID:
                continue
            next_id = max(next_id, owner + 1)
            free = np.isin(known, (0, candidate.parent)) & np.isin(mask, (0, candidate.parent))
            mask[pixels & free] = owner
            self._remember(owner, candidate.descriptor)
        return Discovery(mask, self._leavers(proposals, known, mask))

    def wants(self, parts: PartMap, *, due: bool) -> bool:
        """Whether to look in a frame: in those with proposals, and in videos without any when it is due."""
        self._used = self._used or parts.proposals is not None
        return parts.proposals is not None if self._used else due

    def report(self) -> dict[str, Any]:
        """Counts for ``run.json``; nothing where there were no proposals."""
        counts = {**self._counts, "dropped_too_short": self._candidates.dropped}
        return {"discovery": counts} if self._used else {}

    def state(self) -> State:
        """All that later discoveries depend on."""
        return {
            "used": self._used,
            "candidates": self._candidates.state(),
            "galleries": [[number, list(entries)] for number, entries in self._galleries.items()],
            "unsupported": [[number, count] for number, count in self._unsupported.items()],
            "counts": dict(self._counts),
        }

    def restore(self, state: State) -> None:
        """Go on from a :meth:`state`."""
        self._used = state["used"]
        self._candidates.restore(state["candidates"])
        self._galleries = {number: list(entries) for number, entries in state["galleries"]}
        self._unsupported = dict(state["unsupported"])
        self._counts = dict(state["counts"])

    def _correct(self, proposals: Sequence[Proposal], known: IndexMask, mask: IndexMask) -> list[Candidate]:
        """Write corrected masks of known objects into ``mask``; returns what may be new."""
        areas = np.bincount(known.ravel(), minlength=256)
        candidates: list[Candidate] = []
        pieces: dict[int, list[Proposal]] = {}
        for proposal in proposals:
            owners = np.bincount(known[proposal.pixels], minlength=256)
            area, covered = int(owners.sum()), int(owners[1:].sum())
            held = [int(k) for k in np.flatnonzero(owners[1:] >= HELD_SHARE * np.maximum(areas[1:], 1)) + 1]
            owner = int(owners[1:].argmax()) + 1
            if covered < KNOWN_SHARE * area:
                if len(held) == 1 and covered >= SUPPORT_SHARE * area:
                    candidates.append(Candidate.of(proposal, "growth", owner))
                elif not held:
                    candidates.append(Candidate.of(proposal, "new", 0))
            elif owners[owner] >= SOLE_SHARE * covered:
                pieces.setdefault(owner, []).append(proposal)
        for owner, inside in pieces.items():
            pixels = np.logical_or.reduce([proposal.pixels for proposal in inside])
            propagated = known == owner
            if np.count_nonzero(pixels & propagated) >= CORRECTION_IOU * np.count_nonzero(pixels | propagated):
                mask[pixels & (propagated | (known == 0))] = owner
                if len(inside) == 1:
                    self._remember(owner, inside[0].descriptor)
            candidates += self._split_off(inside, owner, int(areas[owner]))
        return candidates

    def _split_off(self, inside: Sequence[Proposal], owner: int, area: int) -> list[Candidate]:
        """All but the piece that looks most like the object, where it is proposed in several large pieces."""
        large = [p for p in inside if np.count_nonzero(p.pixels) >= PIECE_SHARE * area]
        if len(large) < 2:
            return []
        gallery = self._galleries.get(owner)
        scores = [
            max((float(p.descriptor @ entry) for entry in gallery), default=0.0) if gallery else p.cells.sum()
            for p in large
        ]
        kept = int(np.argmax(scores))
        return [Candidate.of(p, "split", owner) for place, p in enumerate(large) if place != kept]

    def _id_for(self, candidate: Candidate, known: IndexMask, ids: Sequence[int], next_id: int) -> int:
        """The id that a confirmed candidate gets."""
        kind: Kind = candidate.kind
        if kind == "growth":
            self._counts["grown"] += 1
            return candidate.parent
        present = set(np.unique(known).tolist())
        scores = {
            number: max(float(candidate.descriptor @ entry) for entry in entries)
            for number, entries in self._galleries.items()
            if number not in present and number in ids
        }
        best = max(scores, key=lambda number: scores[number], default=0)
        if best and scores[best] >= RETURN_COSINE:
            self._counts["returned"] += 1
            return best
        self._counts["split"] += kind == "split"
        return next_id

    def _remember(self, number: int, descriptor: FloatArray) -> None:
        entries = self._galleries.setdefault(number, [])
        if len(entries) > 1 and float(entries[-1] @ descriptor) >= REDUNDANT_COSINE:
            entries.pop()
        entries.append(descriptor)
        del entries[:-GALLERY_SIZE]
        self._unsupported.pop(number, None)

    def _leavers(self, proposals: Sequence[Proposal], known: IndexMask, mask: IndexMask) -> tuple[int, ...]:
        """Objects that no proposal has supported for long."""
        if not proposals:
            return ()
        proposed = np.logical_or.reduce([proposal.pixels for proposal in proposals])
        areas, supported = np.bincount(known.ravel(), minlength=256), np.bincount(known[proposed], minlength=256)
        left = []
        for number in (np.flatnonzero(areas[1:]) + 1).tolist():
            if supported[number] >= SUPPORT_SHARE * areas[number] or (mask == number).any():
                self._unsupported.pop(number, None)
                continue
            self._unsupported[number] = self._unsupported.get(number, 0) + 1
            if self._unsupported[number] >= UNSUPPORTED_LIMIT:
                del self._unsupported[number]
                self._counts["left"] += 1
                left.append(number)
        return tuple(left)


def describe_proposals(parts: PartMap, features: Features) -> list[Proposal]:
    """The proposals of a frame with their pixels and descriptors, the largest first."""
    features = features.coarse  # the grid of the proposals and the foreground
    values = features.data.detach().to("cpu", torch.float32).numpy()
    regions = parts.proposals
    if regions is None:
        regions = split_instances(parts.foreground, values).astype(np.uint8)
    count = int(regions.max(initial=0))
    if not count:
        return []
    onehot = torch.from_numpy(np.stack([regions == number for number in range(count + 1)]).astype(np.float32))
    shares = features.grid.upsample(onehot).numpy()
    # The foreground's pixels follow the frame's edges, so they belong to the nearest proposal as a whole.
    nearest = shares[1:].argmax(axis=0) + 1
    inside = parts.index_mask > 0
    if parts.proposals is None:
        owner = np.where(inside, nearest, 0)
    else:
        # Beyond it the cells are all there is; its own cells do not add to its pixels.
        beyond = features.grid.upsample(torch.from_numpy((parts.foreground <= 0.5)[None].astype(np.float32)))
        outside = np.where(beyond.numpy()[0] > 0.5, shares.argmax(axis=0), 0)
        owner = np.where(inside & (shares[0] < 1.0), nearest, np.where(inside, 0, outside))
    unit = normalize_rows(values.reshape(len(values), -1).T)
    beyond = unit - unit.mean(axis=0)
    found = []
    for number in range(1, count + 1):
        cells, pixels = regions == number, owner == number
        if cells.any() and pixels.any():
            descriptor = normalize_rows(beyond[cells.ravel()].mean(axis=0, keepdims=True))[0]
            found.append(Proposal(pixels, cells, descriptor))
    return found
