"""The common form of all box files: one table of boxes with frame, identity, category and flags.

MOTChallenge text, BDD100K JSON and COCO JSON are read into a :class:`BoxTable` and written from one, so that
scores and trackers do not depend on file formats. A table holds the boxes exactly as in the file (ground truth may
extend beyond the image, and the official evaluators keep it so); :func:`to_detections` clips them for feature
pooling.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import LabelFileError
from pipeline.core.records import Detections

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class BoxTable:
    """N boxes of one video, in any order.

    Attributes:
        frames: int64 ``(N,)``, 0-based frame index.
        ids: int64 ``(N,)``, identity within the video; -1 for boxes without one (detections).
        xyxy: float64 ``(N, 4)``: left, top, right, bottom in continuous 0-based pixels, not clipped.
        scores: float64 ``(N,)``, as in the file.
        categories: N names or numbers as text; empty where unknown.
        ignored: bool ``(N,)``: ground truth that is not evaluated (MOT flag 0, BDD crowd or distractor).
        visibility: float64 ``(N,)`` in [0, 1]; 1 if the file does not give it.
    """

    frames: IntArray
    ids: IntArray
    xyxy: FloatArray
    scores: FloatArray
    categories: tuple[str, ...]
    ignored: BoolArray
    visibility: FloatArray

    def __post_init__(self) -> None:
        count = len(self.categories)
        shapes = [a.shape for a in (self.frames, self.ids, self.scores, self.ignored, self.visibility)]
        if any(shape != (count,) for shape in shapes) or self.xyxy.shape != (count, 4):
            raise ValueError(f"BoxTable of {count} categories got columns {shapes} and xyxy {self.xyxy.shape}")

    def __len__(self) -> int:
        return len(self.categories)

    def __repr__(self) -> str:
        return f"BoxTable({len(self)} boxes, {len(np.unique(self.frames))} frames)"

    @classmethod
    def make(
        cls,
        frames: npt.ArrayLike,
        ids: npt.ArrayLike,
        xyxy: npt.ArrayLike,
        *,
        scores: npt.ArrayLike | None = None,
        categories: Sequence[str] | None = None,
        ignored: npt.ArrayLike | None = None,
        visibility: npt.ArrayLike | None = None,
    ) -> BoxTable:
        """A table from plain sequences. Scores and visibility default to 1, categories to "", ignored to False.

        >>> BoxTable.make([0, 1], [7, 7], [[0, 0, 4, 4], [1, 0, 5, 4]])
        BoxTable(2 boxes, 2 frames)
        """
        frames = np.asarray(frames, np.int64).reshape(-1)
        count = len(frames)
        return cls(
            frames=frames,
            ids=np.asarray(ids, np.int64).reshape(-1),
            xyxy=np.asarray(xyxy, np.float64).reshape(-1, 4),
            scores=np.ones(count) if scores is None else np.asarray(scores, np.float64).reshape(-1),
            categories=("",) * count if categories is None else tuple(categories),
            ignored=np.zeros(count, np.bool_) if ignored is None else np.asarray(ignored, np.bool_).reshape(-1),
            visibility=np.ones(count) if visibility is None else np.asarray(visibility, np.float64).reshape(-1),
        )

    @classmethod
    def empty(cls) -> BoxTable:
        """No boxes."""
        return cls.make([], [], [])

    @property
    def num_frames(self) -> int:
        """One more than the last frame that has a box."""
        return int(self.frames.max()) + 1 if len(self) else 0

    def select(self, which: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> BoxTable:
        """The rows of a bool mask ``(N,)`` or of an index array."""
        rows = np.arange(len(self))[which]
        return BoxTable(
            frames=self.frames[rows],
            ids=self.ids[rows],
            xyxy=self.xyxy[rows],
            scores=self.scores[rows],
            categories=tuple(self.categories[r] for r in rows),
            ignored=self.ignored[rows],
            visibility=self.visibility[rows],
        )

    def of_categories(self, names: Sequence[str]) -> BoxTable:
        """The rows whose category is one of ``names``."""
        return self.select(np.array([c in names for c in self.categories], np.bool_))

    def by_frame(self, num_frames: int) -> list[IntArray]:
        """The row numbers per frame ``0 .. num_frames - 1``, in the table's order."""
        rows, none = self.rows_by_frame(), np.zeros(0, np.int64)
        return [rows.get(frame, none) for frame in range(num_frames)]

    def rows_by_frame(self) -> dict[int, IntArray]:
        """The row numbers of each frame that has boxes, in the table's order; memory grows with the boxes only."""
        order = np.argsort(self.frames, kind="stable")
        frames, starts = np.unique(self.frames[order], return_index=True)
        parts = np.split(order, starts[1:]) if len(order) else []
        return {int(frame): rows for frame, rows in zip(frames, parts, strict=True)}

    def every(self, step: int, offset: int = 0) -> BoxTable:
        """Only frames ``offset, offset + step, ...``, renumbered from 0.

        >>> BoxTable.make([0, 1, 5], [1, 1, 1], [[0, 0, 1, 1]] * 3).every(5).frames.tolist()
        [0, 1]
        """
        kept = self.select(np.flatnonzero((self.frames >= offset) & ((self.frames - offset) % step == 0)))
        return dataclasses.replace(kept, frames=(kept.frames - offset) // step)


@dataclass(frozen=True, slots=True)
class ClipCounts:
    """How many boxes :func:`to_detections` changed.

    Attributes:
        clipped: Boxes that extended beyond the image and were clipped to it.
        skipped: Boxes without area inside the image, which were dropped.
    """

    clipped: int
    skipped: int

    def warning(self, source: object) -> str | None:
        """One line for the user, or None if nothing was changed."""
        if not (self.clipped or self.skipped):
            return None
        return f"{source}: {self.clipped} boxes clipped to the image, {self.skipped} without area skipped"


def to_detections(table: BoxTable, image_hw: tuple[int, int]) -> tuple[dict[int, Detections], ClipCounts]:
    """Detections by 0-based frame index, clipped to the image.

    Args:
        table: The boxes; identities are dropped.
        image_hw: Size of a frame in pixels.

    Returns:
        Detections of each frame with at least one box left, and the counts of clipped and dropped boxes.
    """
    height, width = image_hw
    limits = np.array([width, height, width, height], np.float64)
    inside = np.clip(table.xyxy, 0, limits)
    # Clipping must not turn a box that has no area in the file (or swapped corners) into one that has.
    sizes = np.concatenate([inside[:, 2:] - inside[:, :2], table.xyxy[:, 2:] - table.xyxy[:, :2]], axis=1)
    has_area = np.asarray((sizes > 0).all(axis=1), np.bool_)
    clipped = int((has_area & (inside != table.xyxy).any(axis=1)).sum())
    kept = dataclasses.replace(table, xyxy=inside).select(np.flatnonzero(has_area))
    found: dict[int, Detections] = {}
    for frame, rows in kept.rows_by_frame().items():
        found[frame] = Detections(
            xyxy=kept.xyxy[rows].astype(np.float32),
            scores=kept.scores[rows].astype(np.float32),
            categories=tuple(kept.categories[r] for r in rows),
            object_ids=np.zeros(len(rows), np.int64),
        )
    return found, ClipCounts(clipped=clipped, skipped=int((~has_area).sum()))


def from_tracks(tracks: Mapping[int, Sequence[tuple[int, Sequence[float]]]]) -> BoxTable:
    """A table from ``{frame index: [(track id, xyxy), ...]}``, for scoring results held in memory.

    >>> from_tracks({3: [(1, (0, 0, 2, 2))]}).frames.tolist()
    [3]
    """
    rows = [(frame, track_id, xyxy) for frame, found in tracks.items() for track_id, xyxy in found]
    return BoxTable.make([r[0] for r in rows], [r[1] for r in rows], [list(r[2]) for r in rows])


def check_frame(where: str, frame: int, num_frames: int | None, *, first: int = 1) -> None:
    """Raise an error for a frame number past the video's end.

    Args:
        where: File and line for the message.
        frame: The number as written in the file.
        num_frames: Frames of the video; None if unknown, and nothing is checked.
        first: The file's number of the first frame.

    Raises:
        LabelFileError: The frame does not exist; the message has both counts.
    """
    if num_frames is not None and frame >= num_frames + first:
        raise LabelFileError(
            f"{where}: needs at least {frame - first + 1} frames (frame {frame}), but the video has {num_frames}; "
            f"is the file for another video?"
        )
