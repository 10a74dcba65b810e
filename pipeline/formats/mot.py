"""MOTChallenge text: ground truth, detections and results, read and written.

Format: https://motchallenge.net/instructions, and Milan et al. 2016, https://arxiv.org/abs/1603.00831, section
4.2. One box per line, separated by commas or blanks::

    frame, id, left, top, width, height, [score or flag, [class, [visibility]]]      MOT16, 17, 20: 9 columns
    frame, id, left, top, width, height, score or flag, x, y, z                      MOT15, results: 10 columns

``frame``, ``left`` and ``top`` count from 1; the table holds 0-based values, one less. In ground truth column 7 is
a flag, and 0 means "not evaluated". Column 8 is the class if it is a positive integer and the line has at most 9
columns or ends in -1; in MOT15's 10 columns it is a world coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pipeline.core.errors import LabelFileError
from pipeline.core.files import write_text_whole
from pipeline.core.records import Detections, Track, VideoInfo
from pipeline.formats.boxes import BoxTable, ClipCounts, check_frame, to_detections
from pipeline.formats.json_file import LARGEST_FRAME, LARGEST_INTEGER

Kind = Literal["gt", "det", "results"]
_MIN_COLUMNS = 6
#: Columns of MOT16 and later: the eighth is the class, the ninth the visibility.
_CLASS_COLUMNS = 9


class Detected(dict[int, Detections]):
    """Detections by 0-based frame index, and what was changed while reading them.

    Attributes:
        counts: How many boxes were clipped to the image, and dropped because they have no area.
        warnings: One line per warning for the user.
    """

    def __init__(self, found: dict[int, Detections], counts: ClipCounts, source: Path) -> None:
        super().__init__(found)
        self.counts = counts
        message = counts.warning(source)
        self.warnings: list[str] = [message] if message else []


class _Row(NamedTuple):
    """One line, with a 0-based frame and box."""

    frame: int
    identity: int
    xyxy: tuple[float, float, float, float]
    score: float
    category: str
    visibility: float


def read_detections(path: Path, info: VideoInfo) -> Detected:
    """Detections of a MOTChallenge file, clipped to the video's frames.

    Args:
        path: A ``det.txt``. Results and ground truth can be read too: identities are dropped, and column 7 is the
            score (see :func:`read_table`).
        info: The video, for its size and number of frames.

    Raises:
        LabelFileError: A bad line (the message has its number), or a frame past the video's end.
    """
    table = read_table(path, kind="det", num_frames=info.num_frames)
    found, counts = to_detections(table, info.image_hw)
    return Detected(found, counts, path)


def read_table(path: Path, *, kind: Kind, num_frames: int | None = None) -> BoxTable:
    """All boxes of a file, exactly as given.

    Args:
        path: The text file. An empty file gives an empty table.
        kind: ``gt`` reads column 7 as the flag (0 is ignored), ``det`` and ``results`` as the score.
        num_frames: Frames of the video, None if unknown.

    Raises:
        LabelFileError: A bad line, an identity twice in a frame, no identity (except for ``det``), or a frame past
            the video's end; the message has the line.
    """
    rows: list[_Row] = []
    seen: dict[tuple[int, int], int] = {}
    for number, columns in _lines(path):
        where = f"{path}:{number}"
        row = _parse(columns, where)
        check_frame(where, row.frame + 1, num_frames)
        if row.identity < 0 and kind != "det":
            raise LabelFileError(f"{where}: identity {row.identity}; ground truth and results need one from 0 on")
        first = seen.setdefault((row.frame, row.identity), number)
        if first != number and row.identity >= 0:
            raise LabelFileError(
                f"{where}: identity {row.identity} appears twice in frame {row.frame + 1} (first in line {first})"
            )
        rows.append(row)
    return BoxTable.make(
        [r.frame for r in rows],
        [r.identity for r in rows],
        [r.xyxy for r in rows],
        scores=[r.score for r in rows],
        categories=[r.category for r in rows],
        ignored=[kind == "gt" and r.score == 0 for r in rows],
        visibility=[r.visibility for r in rows],
    )


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number (from 1) and columns of each line that is not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabelFileError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LabelFileError(f"{path}: is not a text file; expected MOTChallenge lines") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, [c.strip() for c in line.strip().rstrip(",").split(",")] if "," in line else line.split()


def _parse(columns: list[str], where: str) -> _Row:
    if len(columns) < _MIN_COLUMNS:
        raise LabelFileError(
            f"{where}: {len(columns)} columns, at least {_MIN_COLUMNS} are needed: frame,id,left,top,width,height"
        )
    try:
        values = [float(c) for c in columns[:10]]
    except ValueError as error:
        raise LabelFileError(f"{where}: not a number ({error})") from error
    if not all(math.isfinite(v) for v in values):
        raise LabelFileError(f"{where}: holds a value that is not finite")
    frame, identity = values[0], values[1]
    if frame != int(frame) or identity != int(identity):
        raise LabelFileError(f"{where}: frame and id must be integers, got {columns[0]} and {columns[1]}")
    if frame > LARGEST_FRAME or abs(identity) > LARGEST_INTEGER:
        raise LabelFileError(f"{where}: frame or id is too large, got {columns[0]} and {columns[1]}")
    if frame < 1:
        raise LabelFileError(f"{where}: frame {int(frame)}, but frames count from 1")
    left, top, width, height = values[2] - 1, values[3] - 1, values[4], values[5]
    if not (math.isfinite(left + width) and math.isfinite(top + height)):
        raise LabelFileError(f"{where}: the box is too large")
    category, visibility = _class_columns(values)
    return _Row(
        frame=int(frame) - 1,
        identity=int(identity),
        xyxy=(left, top, left + width, top + height),
        score=values[6] if len(values) > _MIN_COLUMNS else 1.0,
        category=category,
        visibility=visibility,
    )


def _class_columns(values: list[float]) -> tuple[str, float]:
    """Class as text (empty if column 8 is not a class) and visibility (1 if column 9 is not one)."""
    rest = values[7:]
    world = len(values) > _CLASS_COLUMNS and rest[-1] != -1
    if not rest or world or rest[0] < 1 or rest[0] != int(rest[0]):
        return "", 1.0
    has_visibility = len(rest) > 1 and 0 <= rest[1] <= 1
    return str(int(rest[0])), rest[1] if has_visibility else 1.0


def format_track(frame_index: int, track: Track) -> str:
    """The line of a track in a results file, without the line feed.

    >>> format_track(0, Track(track_id=3, xyxy=(9.0, 19.0, 59.0, 119.0), score=0.5))
    '1,3,10.00,20.00,50.00,100.00,0.5000,-1,-1,-1'
    """
    return _result_line(frame_index, track.track_id, track.xyxy, track.score)


def _result_line(frame: int, identity: int, xyxy: Iterable[float], score: float) -> str:
    left, top, right, bottom = xyxy
    box = f"{left + 1:.2f},{top + 1:.2f},{right - left:.2f},{bottom - top:.2f}"
    return f"{frame + 1},{identity},{box},{score:.4f},-1,-1,-1"


def write_table(path: Path, table: BoxTable, *, kind: Kind) -> None:
    """Write a table, sorted by frame and identity, whole or not at all.

    Args:
        path: The file to write; missing folders are made.
        table: The boxes.
        kind: ``gt`` writes flag, class and visibility (9 columns; categories must be numbers, else -1);
            ``det`` writes -1 for the identity; both others end in ``score,-1,-1,-1``.
    """
    lines = []
    for row in sorted(range(len(table)), key=lambda r: (table.frames[r], table.ids[r])):
        identity = -1 if kind == "det" else int(table.ids[row])
        line = _result_line(int(table.frames[row]), identity, table.xyxy[row], float(table.scores[row]))
        if kind == "gt":
            category = table.categories[row] if table.categories[row].isdigit() else "-1"
            box = line.rsplit(",", 4)[0]
            line = f"{box},{int(not table.ignored[row])},{category},{table.visibility[row]:.3f}"
        lines.append(line + "\n")
    write_text_whole(path, "".join(lines))
