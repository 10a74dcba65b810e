"""BDD100K box-track JSON ("Scalabel format"), read and written in both of its spellings.

Format: https://doc.bdd100k.com/format.html (Yu et al. 2020, https://arxiv.org/abs/1805.04687). A list of
frames, or an object that holds it under ``frames``; one video per file, or several, identified by ``videoName``.

==================  =================================  ==========================================
what                Scalabel (``spelling="scalabel"``)  first release (``spelling="first"``), TrackEval
==================  =================================  ==========================================
frame number        ``frameIndex``, from 0              ``index``, from 0
attributes          ``crowd``, ``occluded``, ...        ``Crowd``, ``Occluded``, ...
identities          text                                text that is an integer
==================  =================================  ==========================================

Identities are unique only within a video; they are numbered in order of appearance. Boxes are kept as the file
gives them: the official scores count ``x2 - x1 + 1`` pixels, which the scoring adds, not the reader.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.core.errors import LabelFileError
from pipeline.core.files import is_component, write_text_whole
from pipeline.core.records import VideoInfo
from pipeline.formats.boxes import BoxTable, check_frame, to_detections
from pipeline.formats.json_file import is_index, load_json, shorten
from pipeline.formats.mot import Detected

Spelling = Literal["scalabel", "first"]
#: Rate at which BDD100K's tracking frames were sampled from its videos, in frames per second.
FRAME_RATE = 5


@dataclass(frozen=True, slots=True)
class BddVideo:
    """The labels of one video.

    Attributes:
        name: The video's name; empty where the file gives none.
        num_frames: Number of frames, with and without boxes: one more than the last index listed.
        table: All boxes; ``ignored`` is set for crowds and for labels marked as ignored.
        id_names: The file's name of each identity in ``table.ids``.
        frame_names: The images' file names by frame index.
    """

    name: str
    num_frames: int
    table: BoxTable
    id_names: tuple[str, ...] = ()
    frame_names: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Reading:
    """What has been read of one video so far."""

    frames: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    ignored: list[bool] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    frame_names: dict[int, str] = field(default_factory=dict)
    listed: set[int] = field(default_factory=set)

    def finish(self, name: str) -> BddVideo:
        table = BoxTable.make(
            self.frames,
            self.ids,
            self.boxes,
            scores=self.scores,
            categories=self.categories,
            ignored=self.ignored,
        )
        length = max(self.listed) + 1 if self.listed else 0
        return BddVideo(name, length, table, tuple(self.numbers), self.frame_names)


def read_videos(path: Path) -> dict[str, BddVideo]:
    """All videos of a file, or of every ``.json`` in a folder, by name.

    Raises:
        LabelFileError: The file is missing or not JSON, a frame or label lacks a required field (the message names
            file, frame and label), or an identity or a frame appears twice.
    """
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if not files:
            raise LabelFileError(f"{path}: holds no .json files")
        return {name: video for file in files for name, video in read_videos(file).items()}
    readings: dict[str, _Reading] = {}
    for position, frame in enumerate(load_frames(path)):
        where = f"{path}: frame {position}"
        if not isinstance(frame, Mapping):
            raise LabelFileError(f"{where}: is not an object")
        video = _video_name(_first(frame, "videoName", "video_name") or path.stem, where)
        _read_frame(frame, readings.setdefault(video, _Reading()), position, where)
    return {name: reading.finish(name) for name, reading in readings.items()}


def _video_name(value: object, where: str) -> str:
    """The name, which is also that of files with its results."""
    if not isinstance(value, str | int) or not is_component(str(value)):
        raise LabelFileError(f"{where}: videoName {shorten(value)} cannot be the name of a file")
    return str(value)


def load_frames(path: Path) -> list[Any]:
    """The list of frames in a JSON file.

    Raises:
        LabelFileError: The file is missing, is not JSON (the message has the line), or has no list of frames.
    """
    content = load_json(path)
    frames = content.get("frames") if isinstance(content, Mapping) else content
    if not isinstance(frames, list):
        raise LabelFileError(f"{path}: expected a list of frames (BDD100K box-track JSON)")
    return frames


def _first(source: Mapping[str, Any], *keys: str) -> Any:
    """The value of the first key that is present and not null."""
    return next((source[k] for k in keys if source.get(k) is not None), None)


def _read_frame(frame: Mapping[str, Any], reading: _Reading, position: int, where: str) -> None:
    index = _first(frame, "frameIndex", "index", "frame_index")
    index = len(reading.listed) if index is None else index
    if not is_index(index):
        raise LabelFileError(f"{where}: frameIndex must be an integer from 0, got {shorten(index)}")
    if index in reading.listed:
        raise LabelFileError(f"{where}: frameIndex {index} appears twice")
    reading.listed.add(index)
    reading.frame_names[index] = str(frame.get("name") or "")
    here: set[int] = set()
    labels = frame.get("labels") or []
    if not isinstance(labels, list):
        raise LabelFileError(f"{where}: labels must be a list, got {shorten(labels)}")
    for place, label in enumerate(labels):
        box = label.get("box2d") if isinstance(label, Mapping) else None
        if box is not None:
            here.add(_read_label(label, box, reading, index, f"{where} (index {index}), label {place}", here))


def _read_label(
    label: Mapping[str, Any], box: Any, reading: _Reading, index: int, where: str, here: set[int]
) -> int:
    category = label.get("category")
    if not isinstance(category, str) or not category:
        raise LabelFileError(f"{where}: has no category")
    try:
        corners = (float(box["x1"]), float(box["y1"]), float(box["x2"]), float(box["y2"]))
        score = 1.0 if label.get("score") is None else float(label["score"])
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise LabelFileError(f"{where}: needs numbers for box2d's x1, y1, x2, y2 and for the score") from error
    if not all(math.isfinite(v) for v in (*corners, score)):
        raise LabelFileError(f"{where}: holds a value that is not finite")
    name = label.get("id")
    identity = -1 if name is None else reading.numbers.setdefault(str(name), len(reading.numbers))
    if identity >= 0 and identity in here:
        raise LabelFileError(f"{where}: identity '{name}' appears twice in the frame")
    attributes = label.get("attributes") or {}
    if not isinstance(attributes, Mapping):
        raise LabelFileError(f"{where}: attributes must be an object, got {shorten(attributes)}")
    reading.frames.append(index)
    reading.ids.append(identity)
    reading.boxes.append(corners)
    reading.scores.append(score)
    reading.categories.append(category)
    reading.ignored.append(any(bool(attributes.get(key)) for key in ("crowd", "Crowd", "ignored", "Ignored")))
    return identity


def read_detections(path: Path, info: VideoInfo) -> Detected:
    """Detections of one video from a box-track or detection JSON, clipped to the video's frames.

    Args:
        path: A JSON file with one video, or with one that has the name of ``info.path``.
        info: The video, for its name, size and number of frames.

    Raises:
        LabelFileError: A bad label, several videos of which none has the input's name, or a frame past the video's
            end.
    """
    videos = read_videos(path)
    video = next(iter(videos.values())) if len(videos) == 1 else videos.get(info.path.stem)
    if video is None:
        names = ", ".join(sorted(videos)[:5]) or "none"
        raise LabelFileError(f"{path}: holds no labels for '{info.path.stem}'; videos in it: {names}")
    table = video.table.select((~video.table.ignored).nonzero()[0])
    check_frame(str(path), table.num_frames - 1, info.num_frames, first=0)
    found, counts = to_detections(table, info.image_hw)
    return Detected(found, counts, path)


def write_videos(path: Path, videos: Iterable[BddVideo], *, spelling: Spelling = "scalabel") -> None:
    """Write videos as one JSON file that lists every frame, whole or not at all.

    Frames without boxes are listed too: the official evaluation needs as many frames as the ground truth has.
    Identities that ``id_names`` does not name are written as numbers.

    Args:
        path: The file to write; missing folders are made.
        videos: The videos.
        spelling: See the module's table.
    """
    frames = [frame for video in videos for frame in _frames_of(video, spelling)]
    write_text_whole(path, json.dumps(frames) + "\n")


def _frames_of(video: BddVideo, spelling: Spelling) -> list[dict[str, Any]]:
    index_key = "frameIndex" if spelling == "scalabel" else "index"
    return [
        {
            "name": video.frame_names.get(index) or f"{video.name}-{index + 1:07d}.jpg",
            "videoName": video.name,
            index_key: index,
            "labels": [_label(video, int(row), spelling) for row in rows],
        }
        for index, rows in enumerate(video.table.by_frame(video.num_frames))
    ]


def _label(video: BddVideo, row: int, spelling: Spelling) -> dict[str, Any]:
    table = video.table
    identity = int(table.ids[row])
    named = spelling == "scalabel" and 0 <= identity < len(video.id_names)
    attributes = {"occluded": False, "truncated": False, "crowd": bool(table.ignored[row])}
    if spelling == "first":
        attributes = {key.capitalize(): value for key, value in attributes.items()}
    left, top, right, bottom = (round(float(v), 4) for v in table.xyxy[row])
    return {
        "id": video.id_names[identity] if named else str(identity),
        "category": table.categories[row],
        "score": round(float(table.scores[row]), 6),
        "attributes": attributes,
        "box2d": {"x1": left, "y1": top, "x2": right, "y2": bottom},
    }
