"""A finished run as the exporters see it: frames in order, each with the masks of its objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import ConfigError, OutputError
from pipeline.formats.run_folder import OBJECTS, ObjectTable, RunFolder, object_table_of_masks

DEFAULT_CATEGORY = "object"


@dataclass(frozen=True, slots=True)
class ObjectMask:
    """One visible object in one frame.

    Attributes:
        object_id: Its id in the run.
        mask: bool ``(H, W)``.
        xyxy: Left, top, right, bottom in whole pixels, right and bottom exclusive.
        confidence: In [0, 1].
    """

    object_id: int
    mask: npt.NDArray[np.bool_] = field(repr=False)
    xyxy: tuple[int, int, int, int]
    confidence: float

    @property
    def area_px(self) -> int:
        """Number of pixels."""
        return int(self.mask.sum())

    @property
    def xywh(self) -> list[int]:
        """The box as left, top, width, height."""
        left, top, right, bottom = self.xyxy
        return [left, top, right - left, bottom - top]


@dataclass(frozen=True, slots=True)
class LabeledFrame:
    """One frame.

    Attributes:
        position: 0-based place among the frames of the run.
        index: 0-based place in the input.
        name: File name without suffix.
        objects: Visible objects by id.
    """

    position: int
    index: int
    name: str
    objects: tuple[ObjectMask, ...]


class LabeledRun:
    """Masks of a run with the names of its objects.

    Args:
        run: The run's folder.
        names: Categories by object id, before those in the record of the run; objects without one are called
            ``object``.

    Raises:
        OutputError: The run has no masks.
        ConfigError: A name belongs to no object, or is empty or not printable.
    """

    def __init__(self, run: RunFolder, names: Mapping[int, str] | None = None) -> None:
        self.run = run
        self.paths = run.index_masks()
        if not self.paths:
            raise OutputError(
                f"{run.folder}: has no masks to export (it was run without propagate or write.masks)"
            )
        self.table: ObjectTable = run.objects() if run.file(OBJECTS) else object_table_of_masks(run)
        self._confidence = {
            (frame, number): value
            for frame, number, value in zip(
                self.table.frames.tolist(), self.table.object_ids.tolist(), self.table.confidence.tolist(),
                strict=True,
            )
        }  # fmt: skip
        self.object_ids: list[int] = [number for number in self.table.ids() if number > 0]
        for number, name in (names or {}).items():
            if number not in self.object_ids:
                raise ConfigError(f"object {number} does not exist; objects: {self.object_ids}")
            if not name or not name.isprintable():
                raise ConfigError(f"the name of object {number} is empty or not printable")
        # A run may have been stopped before an object that has a name was seen.
        recorded = {number: name for number, name in run.object_names.items() if number in self.object_ids}
        self._names = {**recorded, **(names or {})}

    @property
    def categories(self) -> list[str]:
        """The categories, sorted."""
        return sorted({self.category(number) for number in self.object_ids} or {DEFAULT_CATEGORY})

    def category(self, object_id: int) -> str:
        """The category of an object."""
        return self._names.get(object_id, DEFAULT_CATEGORY)

    def confidence(self, object_id: int) -> float:
        """Mean confidence of an object over the frames in which it is visible."""
        rows = self.table.rows_of(object_id)
        rows = rows[self.table.areas_px[rows] > 0]
        return float(self.table.confidence[rows].mean()) if len(rows) else 0.0

    def frame_names(self) -> list[str]:
        """File names without suffix, in order."""
        return [path.stem for path in self.paths.values()]

    def __iter__(self) -> Iterator[LabeledFrame]:
        """The frames in order; one mask is in memory at a time."""
        names = self.frame_names()
        for position, (index, mask) in enumerate(self.run.read_masks()):
            found = tuple(self._objects_in(index, mask))
            yield LabeledFrame(position, index, names[position], found)

    def _objects_in(self, index: int, mask: npt.NDArray[np.uint8]) -> Iterator[ObjectMask]:
        for number in self.object_ids:
            inside = mask == number
            rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
            if len(rows):
                box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
                yield ObjectMask(number, inside, box, self._confidence.get((index, number), 1.0))
