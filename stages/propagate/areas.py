"""Rectangles of cells: what is worked on at a time, and what windows around it hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Area:
    """A rectangle of cells, ``bottom`` and ``right`` excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.bottom - self.top, self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its rows and columns of a map ``(h, w, ...)``."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def grown(self, reach: int | None, height: int, width: int) -> Area:
        """The rectangle that holds all windows around these cells, inside the frame."""
        if reach is None:
            return Area(0, height, 0, width)
        return Area(
            max(self.top - reach, 0),
            min(self.bottom + reach, height),
            max(self.left - reach, 0),
            min(self.right + reach, width),
        )


@dataclass(frozen=True, slots=True)
class Strip(Area):
    """An area whose windows are copied together, worked on in tiles of ``tile_rows`` and its full width.

    ``whole``: its tiles are compared with the whole frame.
    """

    tile_rows: int
    whole: bool = False

    def tiles(self) -> Iterator[Area]:
        """From top to bottom."""
        for top in range(self.top, self.bottom, self.tile_rows):
            yield Area(top, min(top + self.tile_rows, self.bottom), self.left, self.right)
