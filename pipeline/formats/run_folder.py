"""The output folder of a run, read back: ``run.json``, masks, parts, tracks, objects and the times of the video.

Reports and exports read a run through :class:`RunFolder`. Every path is made inside the folder; a link in it that
leads elsewhere is refused.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from pipeline.core.errors import InputError, LabelFileError, OutputError
from pipeline.core.files import list_images, natural_key, path_inside
from pipeline.formats.boxes import BoxTable
from pipeline.formats.mot import read_table
from pipeline.formats.object_names import check_names
from pipeline.formats.palette import read_indexed_png

RECORD, VIDEO, TRACKS, OBJECTS = "run.json", "annotated.mp4", "tracks.txt", "objects.csv"
OBJECT_COLUMNS: tuple[str, ...] = (
    *("frame", "pts_seconds", "object_id", "area_px", "left", "top", "right", "bottom"),
    *("centroid_x", "centroid_y", "confidence"),
)


@dataclass(frozen=True, slots=True)
class ObjectTable:
    """One row per object and frame, in the order of the frames.

    Attributes:
        frames: int64 ``(N,)``, index of the frame in the input.
        pts_seconds: float64 ``(N,)``, time of the frame in the input.
        object_ids: int64 ``(N,)``.
        areas_px: int64 ``(N,)``; 0 where the object is not visible.
        xyxy: float64 ``(N, 4)`` in pixels, right and bottom exclusive; NaN where it is not visible.
        centroids: float64 ``(N, 2)`` as (x, y) in pixels; NaN where it is not visible.
        confidence: float64 ``(N,)`` in [0, 1].
    """

    frames: npt.NDArray[np.int64]
    pts_seconds: npt.NDArray[np.float64]
    object_ids: npt.NDArray[np.int64]
    areas_px: npt.NDArray[np.int64]
    xyxy: npt.NDArray[np.float64]
    centroids: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.frames)

    @classmethod
    def from_rows(cls, rows: npt.NDArray[np.float64]) -> ObjectTable:
        """A table from float64 ``(N, 11)`` in the order of :data:`OBJECT_COLUMNS`."""
        return cls(
            frames=rows[:, 0].astype(np.int64),
            pts_seconds=rows[:, 1],
            object_ids=rows[:, 2].astype(np.int64),
            areas_px=rows[:, 3].astype(np.int64),
            xyxy=rows[:, 4:8],
            centroids=rows[:, 8:10],
            confidence=rows[:, 10],
        )

    def rows_of(self, object_id: int) -> npt.NDArray[np.int64]:
        """Row numbers of one object, in the order of the frames."""
        return np.flatnonzero(self.object_ids == object_id)

    def ids(self) -> list[int]:
        """The objects, ascending."""
        return [int(value) for value in np.unique(self.object_ids)]


def read_objects(path: Path) -> ObjectTable:
    """Read ``objects.csv``.

    Raises:
        LabelFileError: The file is missing or a line cannot be read; the message names it.
    """
    rows: list[list[float]] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            if tuple(next(lines, ())) != OBJECT_COLUMNS:
                raise LabelFileError(f"{path}: the first line must be {','.join(OBJECT_COLUMNS)}")
            for number, line in enumerate(lines, start=2):
                rows.append(_numbers(line, f"{path}:{number}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelFileError(f"{path}: cannot be read ({error})") from error
    return ObjectTable.from_rows(np.array(rows, np.float64).reshape(-1, len(OBJECT_COLUMNS)))


def _numbers(line: list[str], where: str) -> list[float]:
    if len(line) != len(OBJECT_COLUMNS):
        raise LabelFileError(f"{where}: has {len(line)} columns instead of {len(OBJECT_COLUMNS)}")
    try:
        values = [float(text) if text else float("nan") for text in line]
    except ValueError as error:
        raise LabelFileError(f"{where}: {error}") from error
    if not all(0 <= values[n] < 2**53 for n in (0, 2, 3)) or not 0 <= values[10] <= 1:
        raise LabelFileError(f"{where}: a frame, an id, an area or a confidence is out of range")
    return values


class RunFolder:
    """A run's output folder. Nothing is read but ``run.json`` until it is asked for.

    Args:
        folder: The folder of one run.

    Attributes:
        folder: The same.
        record: ``run.json``.

    Raises:
        OutputError: It is not the output folder of a run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            record = json.loads(path_inside(folder, RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise OutputError(f"{folder}: is not the output folder of a run (no readable {RECORD})") from error
        if not isinstance(record, dict) or not isinstance(record.get("input"), dict):
            raise OutputError(f"{folder / RECORD}: is not the record of a finished run")
        self.record: dict[str, Any] = record

    @property
    def name(self) -> str:
        """Name of the input without its folder."""
        return Path(str(self.record["input"].get("path", self.folder.name))).name

    @property
    def object_names(self) -> dict[int, str]:
        """Names that were given to objects, by id.

        Raises:
            OutputError: ``run.json`` holds something else.
        """
        try:
            return check_names(self._section("object_names"))
        except InputError as error:
            raise OutputError(f"{self.folder / RECORD}: {error}") from error

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of a frame in pixels."""
        return int(self.record["input"]["height"]), int(self.record["input"]["width"])

    @property
    def frame_rate(self) -> Fraction:
        """Nominal frames per second of the input."""
        return Fraction(self.record["input"]["frame_rate"])

    @property
    def config(self) -> dict[str, Any]:
        """The config of the run."""
        identity = self._section("identity")
        return dict(identity.get("config") or self.record.get("config") or {})

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the packages that the run used."""
        return dict(self._section("identity").get("versions") or self.record.get("versions") or {})

    def report_of(self, stage: str) -> dict[str, Any]:
        """The facts that a stage has left in ``run.json``."""
        found = self._section("reports").get(stage)
        return found if isinstance(found, dict) else {}

    def file(self, *names: str) -> Path | None:
        """A file in the folder, None where it is missing."""
        path = path_inside(self.folder, *names)
        return path if path.is_file() else None

    def index_masks(self, kind: str = "masks") -> dict[int, Path]:
        """The index masks (``masks`` or ``parts``) by frame index, ascending."""
        inner = path_inside(self.folder, kind)
        names = [path.name for path in inner.glob("*.png")] if inner.is_dir() else []
        files = [path_inside(self.folder, kind, name) for name in sorted(names, key=natural_key)]
        return dict(zip(self._frames_of([path.stem for path in files]), files, strict=True))

    def objects(self) -> ObjectTable:
        """The table of objects, empty without one.

        Raises:
            LabelFileError: A line cannot be read.
        """
        path = self.file(OBJECTS)
        return ObjectTable.from_rows(np.zeros((0, len(OBJECT_COLUMNS)))) if path is None else read_objects(path)

    def tracks(self) -> BoxTable:
        """The tracked boxes, empty without any."""
        path = self.file(TRACKS)
        if path is None or path.stat().st_size == 0:
            return BoxTable.empty()
        return read_table(path, kind="results")

    def video_seconds(self) -> list[float]:
        """Presentation times of the frames in the annotated video, from 0; empty without a video."""
        path = self.file(VIDEO)
        if path is None:
            return []
        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                base = stream.time_base or Fraction(1, 90_000)
                times = sorted(float(p.pts * base) for p in container.demux(stream) if p.pts is not None)
        except (av.FFmpegError, IndexError):
            return []
        return times

    def frames(self, labeled: Mapping[str, npt.NDArray[np.int64]] | None = None) -> list[int]:
        """Indices of the frames that were processed, ascending.

        They are those of the masks, parts, objects and tracks; where fewer of them exist than frames were written,
        the rest is counted on in the steps of ``decode.every``.

        Args:
            labeled: Frames of tables that have been read already, by any name.
        """
        found = set(self.index_masks("masks")) | set(self.index_masks("parts"))
        for frames in (labeled or {}).values():
            found.update(int(value) for value in np.unique(frames))
        count = int(self.record.get("frames") or len(found))
        step = int(self.config.get("decode", {}).get("every") or 1)
        first = min(found) if found and self.config.get("decode", {}).get("start_seconds") else 0
        candidate = first
        while len(found) < count:
            found.add(candidate)
            candidate += step
        return sorted(found)

    def read_masks(self, kind: str = "masks") -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """Frame index and index mask uint8 ``(H, W)`` of every frame, one at a time."""
        for index, path in self.index_masks(kind).items():
            yield index, read_indexed_png(path)

    def _section(self, name: str) -> dict[str, Any]:
        value = self.record.get(name)
        return value if isinstance(value, dict) else {}

    def _frames_of(self, stems: list[str]) -> list[int]:
        """Frame indices of file names: numbers for a video; for a folder of images places in that folder."""
        identity = self._section("identity").get("input")
        from_images = isinstance(identity, dict) and "files" in identity
        if not from_images and all(stem.isdecimal() for stem in stems):
            return [int(stem) for stem in stems]
        source = Path(str(self.record["input"].get("path")))
        if source.is_dir():
            places = {path.stem: index for index, path in enumerate(list_images(source))}
            if all(stem in places for stem in stems):
                return [places[stem] for stem in stems]
        step = int(self.config.get("decode", {}).get("every") or 1)
        return [place * step for place in range(len(stems))]


def object_table_of_masks(run: RunFolder) -> ObjectTable:
    """The table of objects worked out from the masks, for a run without ``objects.csv``; confidence is 1."""
    rate = float(run.frame_rate)
    rows: list[list[float]] = []
    for frame, mask in run.read_masks():
        for object_id in np.unique(mask[(mask > 0) & (mask < 255)]).tolist():
            ys, xs = np.nonzero(mask == object_id)
            box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            rows.append([frame, frame / rate, object_id, len(xs), *box, xs.mean() + 0.5, ys.mean() + 0.5, 1.0])
    return ObjectTable.from_rows(np.array(rows, np.float64).reshape(-1, len(OBJECT_COLUMNS)))


def find_runs(folder: Path) -> list[RunFolder]:
    """The run itself, or the runs in the folders directly inside ``folder``, sorted by name.

    Raises:
        OutputError: There is none.
    """
    if (folder / RECORD).is_file():
        return [RunFolder(folder)]
    inner = sorted(folder.iterdir(), key=lambda path: natural_key(path.name)) if folder.is_dir() else []
    runs = []
    for path in inner:
        if (path / RECORD).is_file() and not path.is_symlink():
            try:
                runs.append(RunFolder(path))
            except OutputError:
                continue
    if not runs:
        raise OutputError(f"{folder}: holds no output of a run (no {RECORD} in it or in a folder inside it)")
    return runs
