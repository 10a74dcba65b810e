"""Which object each part belongs to: how often their masks overlap, counted frame by frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.state import State

SAMPLE_PX = 4
"""Overlaps are counted in every so many rows and columns of a frame."""

MIN_SHARE = 0.5
"""A part belongs to the object that covers this share of its pixels or more; otherwise to none."""

_IDS = 256


class PartOwners:
    """Overlaps of parts and objects over a video.

    Invariant: what is kept is bounded by the number of parts times objects (255 each), however long the video.
    """

    def __init__(self) -> None:
        """Start without frames."""
        self._counts: npt.NDArray[np.int64] = np.zeros((1, _IDS), np.int64)

    def add(self, parts: npt.NDArray[np.uint8], objects: npt.NDArray[np.uint8]) -> None:
        """Count one frame.

        Args:
            parts: uint8 ``(H, W)``, the number of each pixel's part; 0 is background.
            objects: uint8 ``(H, W)``, the id of its object; 0 is background.
        """
        sampled = parts[::SAMPLE_PX, ::SAMPLE_PX].astype(np.int64) * _IDS + objects[::SAMPLE_PX, ::SAMPLE_PX]
        counts = np.bincount(sampled.ravel(), minlength=self._counts.size)
        rows = -(-len(counts) // _IDS)
        counts = np.pad(counts, (0, rows * _IDS - len(counts))).reshape(rows, _IDS)
        counts[: len(self._counts)] += self._counts
        self._counts = counts

    def report(self) -> list[dict[str, Any]]:
        """One entry per part, for ``run.json``.

        Returns:
            ``number``; ``object``, the id of the object that covers half or more of the part's pixels, or None;
            and ``share``, what that object (without one, the one that covers most) covers of them, in [0, 1].
        """
        entries = []
        for number in range(1, len(self._counts)):
            total = int(self._counts[number].sum())
            if not total:
                continue
            owner = int(self._counts[number, 1:].argmax()) + 1
            share = int(self._counts[number, owner]) / total
            known = owner if share >= MIN_SHARE else None
            entries.append({"number": number, "object": known, "share": round(share, 3)})
        return entries

    def state(self) -> State:
        """The counts so far."""
        return {"counts": self._counts}

    def restore(self, state: State) -> None:
        """Continue from a :meth:`state`."""
        self._counts = state["counts"]
