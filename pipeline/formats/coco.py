"""COCO detections: ``[{image_id, category_id, bbox, score}]``, or a whole data set with images and category names.

Format: https://cocodataset.org/#format-results. ``bbox`` is left, top, width, height in continuous 0-based pixels.
COCO has no frame numbers. An image is matched to a frame by its ``file_name`` if the file has ``images`` and the
input is a folder of images with that name; else by the order of the file names, if there are as many images as
frames; else ``image_id`` is the frame number, counted from 0 if one of them is 0 and from 1 otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import LabelFileError
from pipeline.core.records import VideoInfo
from pipeline.formats.boxes import BoxTable, check_frame, to_detections
from pipeline.formats.json_file import LARGEST_INTEGER, is_index, load_json, shorten
from pipeline.formats.mot import Detected


def read_detections(path: Path, info: VideoInfo) -> Detected:
    """Detections of a COCO results or data-set file, clipped to the video's frames.

    Args:
        path: The JSON file.
        info: The video, for its frame names, size and number of frames.

    Raises:
        LabelFileError: A bad entry (the message has its position), or an image that is not a frame of the video.
    """
    table = read_table(path, frame_names=info.frame_names, num_frames=info.num_frames)
    found, counts = to_detections(table, info.image_hw)
    return Detected(found, counts, path)


def read_table(path: Path, *, frame_names: Sequence[str] = (), num_frames: int | None = None) -> BoxTable:
    """All boxes of a COCO file, exactly as given, without identities.

    Args:
        path: The JSON file.
        frame_names: File names of the frames without suffix, in order; empty for a video.
        num_frames: Frames of the video, None if unknown.

    Raises:
        LabelFileError: See :func:`read_detections`.
    """
    content = load_json(path)
    entries = content.get("annotations") if isinstance(content, Mapping) else content
    if not isinstance(entries, list):
        raise LabelFileError(f"{path}: expected a list of detections, or an object with 'annotations' (COCO JSON)")
    images, categories = _list_of(content, "images", path), _list_of(content, "categories", path)
    names = {_identifier(c, "id", f"{path}: a category"): str(c.get("name")) for c in categories}
    rows = [_entry(entry, f"{path}: entry {place}") for place, entry in enumerate(entries)]
    frames = _frame_of_image([r[0] for r in rows], images, frame_names, num_frames, f"{path}: an image")
    for place, row in enumerate(rows):
        if row[0] not in frames:
            raise LabelFileError(f"{path}: entry {place}: image {row[0]} is not a frame of the video")
        if not is_index(frames[row[0]]):
            raise LabelFileError(f"{path}: entry {place}: image {shorten(row[0])} is not a frame number")
        check_frame(f"{path}: entry {place}", frames[row[0]], num_frames, first=0)
    return BoxTable.make(
        [frames[r[0]] for r in rows],
        [-1] * len(rows),
        [r[2] for r in rows],
        scores=[r[3] for r in rows],
        categories=[names.get(r[1], "" if r[1] is None else str(r[1])) for r in rows],
        ignored=[r[4] for r in rows],
    )


def _list_of(content: Any, key: str, path: Path) -> list[Mapping[str, Any]]:
    """The objects under a key of the file, none if it is absent."""
    values = content.get(key, []) if isinstance(content, Mapping) else []
    if not isinstance(values, list) or not all(isinstance(value, Mapping) for value in values):
        raise LabelFileError(f"{path}: '{key}' must be a list of objects")
    return values


def _identifier(source: Mapping[str, Any], key: str, where: str) -> int | str | None:
    value = source.get(key)
    if value is not None and not isinstance(value, int | str):
        raise LabelFileError(f"{where}: {key} must be a number or a name, got {shorten(value)}")
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise LabelFileError(f"{where}: {key} {shorten(value)} is too large")
    return value


_Entry = tuple[Any, Any, tuple[float, float, float, float], float, bool]


def _entry(entry: Any, where: str) -> _Entry:
    """Image id, category id, xyxy, score and crowd flag of one entry."""
    if not isinstance(entry, Mapping) or "image_id" not in entry:
        raise LabelFileError(f"{where}: has no image_id")
    image, category = (_identifier(entry, key, where) for key in ("image_id", "category_id"))
    if image is None:
        raise LabelFileError(f"{where}: image_id must be a number or a name, got None")
    try:
        left, top, width, height = (float(v) for v in entry["bbox"])
        score = float(entry.get("score", 1.0))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise LabelFileError(
            f"{where}: needs bbox as [left, top, width, height] and a score that is a number"
        ) from error
    if not all(math.isfinite(v) for v in (left, top, width, height, score)):
        raise LabelFileError(f"{where}: holds a value that is not finite")
    box = (left, top, left + width, top + height)
    if not all(math.isfinite(v) for v in box):
        raise LabelFileError(f"{where}: the box is too large")
    return image, category, box, score, bool(entry.get("iscrowd"))


def _frame_of_image(
    used: Sequence[Any],
    images: Sequence[Mapping[str, Any]],
    frame_names: Sequence[str],
    num_frames: int | None,
    where: str,
) -> dict[Any, int]:
    """The 0-based frame of every image id."""
    by_name = {name: frame for frame, name in enumerate(frame_names)}
    listed = {_identifier(i, "id", where): str(i.get("file_name", "")) for i in images if "id" in i}
    named = {image: by_name[Path(name).stem] for image, name in listed.items() if Path(name).stem in by_name}
    if named:
        return named
    if listed and num_frames in (None, len(listed)):
        return {image: frame for frame, image in enumerate(sorted(listed, key=lambda i: (listed[i], str(i))))}
    numbers = [i for i in used if isinstance(i, int)]
    texts = {i: by_name[Path(i).stem] for i in used if isinstance(i, str) and Path(i).stem in by_name}
    first = int(bool(numbers) and min(numbers) >= 1)
    return texts | {i: i - first for i in numbers if i >= first}
