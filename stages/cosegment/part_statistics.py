"""How often and how large each part was seen, for the report."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.core.colors import PART_COLORS
from pipeline.core.records import PartMap
from pipeline.core.resizing import id_areas


class PartStatistics:
    """Number, color, mean area and first and last frame of every part.

    Invariant: at most 255 entries, however long the video.
    """

    def __init__(self) -> None:
        """Start without parts."""
        self._entries: dict[int, dict[str, Any]] = {}

    def count(self, index: int, parts: PartMap) -> None:
        """Add the parts of the frame ``index``."""
        areas = id_areas(parts.index_mask)
        for number in np.flatnonzero(areas[1:]) + 1:
            color = "#" + "".join(f"{int(channel):02x}" for channel in PART_COLORS[number])
            new = {
                "number": int(number),
                "color": color,
                "mean_area_px": 0.0,
                "frames": 0,
                "first_frame": index,
            }
            entry = self._entries.setdefault(int(number), new)
            entry["frames"] += 1
            entry["mean_area_px"] += (float(areas[number]) - entry["mean_area_px"]) / entry["frames"]
            entry["last_frame"] = index

    def entries(self) -> list[dict[str, Any]]:
        """Copies of the entries by rising number, ready for JSON."""
        return [dict(self._entries[number]) for number in sorted(self._entries)]

    def restore(self, entries: list[dict[str, Any]]) -> None:
        """Continue from :meth:`entries`."""
        self._entries = {entry["number"]: dict(entry) for entry in entries}
