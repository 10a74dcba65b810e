"""Text files that grow with the frames: tracks, objects, and the list of files with their hashes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pipeline.core.records import Packet
from pipeline.formats.mot import format_track

OBJECT_COLUMNS = (
    "frame",
    "pts_seconds",
    "object_id",
    "area_px",
    "left",
    "top",
    "right",
    "bottom",
    "centroid_x",
    "centroid_y",
    "confidence",
)


class GrowingText:
    """A text file that is appended to and flushed with every write, so that others can read it meanwhile."""

    def __init__(self, path: Path, header: str = "") -> None:
        self.path = path
        self._header = header
        self._file: TextIO | None = None

    def write(self, text: str) -> None:
        """Append text; the file is made, with its header, by the first text that is not empty."""
        if not text:
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = not self.path.exists()
            self._file = self.path.open("a", encoding="utf-8", newline="\n")
            text = self._header + text if fresh else text
        self._file.write(text)
        self._file.flush()

    def length(self) -> int:
        """Bytes written so far, all of them on the disk when this returns."""
        if self._file is None:
            return self.path.stat().st_size if self.path.exists() else 0
        os.fsync(self._file.fileno())
        return self._file.tell()

    def truncate(self, length: int) -> None:
        """Cut the file back to its first ``length`` bytes; 0 removes it."""
        self.close()
        if length == 0:
            self.path.unlink(missing_ok=True)
        else:
            os.truncate(self.path, length)

    def close(self) -> None:
        """Close the file; a later write opens it again."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def track_lines(packet: Packet) -> str:
    """The boxes seen in this frame as MOTChallenge lines."""
    seen = [track for track in packet.tracks or () if track.time_since_update == 0]
    return "".join(f"{format_track(packet.index, track)}\n" for track in seen)


def object_lines(packet: Packet) -> str:
    """One CSV line (:data:`OBJECT_COLUMNS`) per object of the frame, also for an object without a pixel.

    Boxes are whole pixels, right and bottom exclusive; centroids are pixel centers, so pixel 0 is at 0.5. Both are
    empty where the object has no pixel.
    """
    labels = packet.labels
    if labels is None:
        return ""
    confidence = labels.confidence or (1.0,) * len(labels.object_ids)
    start = f"{packet.index},{packet.frame.pts_seconds:.6f}"
    shapes = object_shapes(labels.index_mask, labels.object_ids)
    lines = (
        f"{start},{number},{shape},{value:.4f}\n"
        for number, shape, value in zip(labels.object_ids, shapes, confidence, strict=True)
    )
    return "".join(lines)


def object_shapes(index_mask: npt.NDArray[np.uint8], object_ids: Iterable[int]) -> list[str]:
    """Area, box and centroid of each object as CSV text.

    >>> mask = np.zeros((4, 6), np.uint8)
    >>> mask[1:3, 2:5] = 7
    >>> object_shapes(mask, [7, 9])
    ['6,2,1,5,3,3.50,2.00', '0,,,,,,']
    """
    boxes = ndimage.find_objects(index_mask)
    texts = []
    for number in object_ids:
        box = boxes[number - 1] if number <= len(boxes) else None
        if box is None:
            texts.append("0,,,,,,")
            continue
        rows, columns = box
        inside = index_mask[box] == number
        area = int(inside.sum())
        center_y = rows.start + float(inside.sum(axis=1) @ np.arange(inside.shape[0])) / area + 0.5
        center_x = columns.start + float(inside.sum(axis=0) @ np.arange(inside.shape[1])) / area + 0.5
        texts.append(
            f"{area},{columns.start},{rows.start},{columns.stop},{rows.stop},{center_x:.2f},{center_y:.2f}"
        )
    return texts
