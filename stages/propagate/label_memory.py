"""The context of propagation: reference frames that are kept, and a queue of the latest frames.

Invariant: entries hold channels-last, L2-normalized descriptors and label maps of the same K + 1 channels; at
most ``max_references`` + ``context_frames`` of them, whatever the length of the video.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.state import State


@dataclass(frozen=True, slots=True)
class Memory:
    """One remembered frame.

    Attributes:
        frame_index: Its index in the input.
        descriptors: float32 ``(C, h, w)``, normalized, channels last in memory.
        labels: float32 ``(K + 1, h, w)``, background first.
        given: Channels (from 1) whose labels were given in this frame.
    """

    frame_index: int
    descriptors: Tensor
    labels: Tensor
    given: frozenset[int] = frozenset()


class LabelMemory:
    """The references and the queue of recent frames of one video.

    Args:
        context_frames: Length of the queue of recent frames.
        max_references: Largest number of reference frames; the very first one is never dropped.
        prefix_copies: How many copies of the first reference fill the queue at the start (videowalk).
    """

    def __init__(self, context_frames: int, *, max_references: int = 8, prefix_copies: int = 0) -> None:
        self._recent: deque[Memory] = deque(maxlen=context_frames)
        self._references: list[Memory] = []
        self.max_references = max_references
        self._prefix_copies = prefix_copies

    @property
    def empty(self) -> bool:
        """Whether nothing is remembered yet."""
        return not self._references

    @property
    def references(self) -> tuple[Memory, ...]:
        """Frames with given masks, oldest first."""
        return tuple(self._references)

    @property
    def recent(self) -> tuple[Memory, ...]:
        """The latest frames, oldest first."""
        return tuple(self._recent)

    def entries(self) -> tuple[Memory, ...]:
        """References, then recent frames, each oldest first."""
        return (*self._references, *self._recent)

    def push(self, memory: Memory) -> None:
        """Remember a frame until ``context_frames`` newer ones have come."""
        self._recent.append(memory)

    def add_reference(self, memory: Memory) -> int | None:
        """Keep a frame with given masks as a reference.

        Returns:
            The index of the reference that was dropped for it, or None.
        """
        if not self._references:
            self._recent.extend(replace(memory, given=frozenset()) for _ in range(self._prefix_copies))
        self._references.append(memory)
        if len(self._references) <= self.max_references:
            return None
        return self._references.pop(self._expendable()).frame_index

    def replace_all(self, entries: tuple[Memory, ...]) -> None:
        """Put changed versions of :meth:`entries`, in the same order, in their place."""
        count = len(self._references)
        self._references = list(entries[:count])
        self._recent = deque(entries[count:], maxlen=self._recent.maxlen)

    def widen(self, channels: int) -> None:
        """Grow every label map to ``channels`` channels; the new objects are in none of the old frames."""

        def wider(memory: Memory) -> Memory:
            missing = channels - memory.labels.shape[0]
            return replace(memory, labels=F.pad(memory.labels, (0, 0, 0, 0, 0, missing))) if missing else memory

        self.replace_all(tuple(wider(memory) for memory in self.entries()))

    def to(self, device: torch.device) -> None:
        """Move all tensors to a device; nothing happens where they are there already."""
        if all(memory.labels.device == device for memory in self.entries()):
            return

        def moved(memory: Memory) -> Memory:
            return replace(memory, descriptors=memory.descriptors.to(device), labels=memory.labels.to(device))

        self.replace_all(tuple(moved(memory) for memory in self.entries()))

    def state(self) -> State:
        """All entries as plain values and tensors; the copies of the first reference share its descriptors."""
        shared = {id(memory.descriptors) for memory in self._references}
        return {
            "references": [_entry_state(memory) for memory in self._references],
            "recent": [_entry_state(m, without=id(m.descriptors) in shared) for m in self._recent],
        }

    def restore(self, state: State) -> None:
        """Take the entries of :meth:`state` in place of the present ones."""
        self._references = [_entry_from_state(entry) for entry in state["references"]]
        known = {memory.frame_index: memory.descriptors for memory in self._references}
        self._recent.clear()
        self._recent.extend(_entry_from_state(entry, known) for entry in state["recent"])

    def _expendable(self) -> int:
        """The oldest reference, but the first, all of whose objects a newer one has too; else the second."""
        for position in range(1, len(self._references) - 1):
            newer = frozenset().union(*(m.given for m in self._references[position + 1 :]))
            if self._references[position].given <= newer:
                return position
        return 1


def _entry_state(memory: Memory, *, without: bool = False) -> State:
    return {
        "frame_index": memory.frame_index,
        "descriptors": None if without else memory.descriptors,
        "labels": memory.labels,
        "given": sorted(memory.given),
    }


def _entry_from_state(state: State, known: dict[int, Tensor] | None = None) -> Memory:
    descriptors = state["descriptors"]
    if descriptors is None:
        descriptors = (known or {})[state["frame_index"]]
    return Memory(state["frame_index"], descriptors, state["labels"], frozenset(state["given"]))


def merge_channels(labels: Tensor, fresh: Tensor, channels: frozenset[int]) -> Tensor:
    """``labels`` with some object channels taken from ``fresh``, the others scaled so that the sum stays 1.

    Args:
        labels: float32 ``(K + 1, h, w)``.
        fresh: float32 ``(K + 1, h, w)``, sums to 1 over channels.
        channels: Which channels (from 1) to take.

    >>> old, new = torch.tensor([[[0.2]], [[0.8]], [[0.0]]]), torch.tensor([[[0.5]], [[0.0]], [[0.5]]])
    >>> [round(v, 2) for v in merge_channels(old, new, frozenset({2})).flatten().tolist()]
    [0.1, 0.4, 0.5]
    """
    taken = sorted(channels)
    kept = [c for c in range(labels.shape[0]) if c not in channels]
    out = torch.empty_like(labels)
    out[taken] = fresh[taken]
    room = (1 - fresh[taken].sum(0)).clamp(min=0)
    total = labels[kept].sum(0)
    # A cell that belonged to the replaced objects alone has nothing left to scale: its room is background.
    out[kept] = torch.where(total > 1e-6, labels[kept] / total.clamp(min=1e-6), 0) * room
    out[0] += torch.where(total > 1e-6, 0, room)
    return out
