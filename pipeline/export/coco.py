"""COCO instance segmentation and YouTube-VIS, both with compressed RLE masks.

Formats: https://cocodataset.org/#format-data and https://youtube-vos.org/dataset/vis. Beyond COCO, every
annotation has ``track_id``, ``video_id``, ``frame_index`` and ``score``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.core.files import write_text_whole
from pipeline.export.labeled_run import LabeledRun
from pipeline.formats.rle import encode_mask

_VIDEO_ID = 1


def write_coco(run: LabeledRun, path: Path) -> None:
    """Write one COCO JSON file: an image per frame, an annotation per visible object.

    Raises:
        OutputError: It cannot be written.
    """
    height, width = run.run.image_hw
    category_ids = _category_ids(run)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for frame in run:
        image_id = frame.position + 1
        images.append(
            {
                "id": image_id,
                "file_name": f"{frame.name}.jpg",
                "height": height,
                "width": width,
                "video_id": _VIDEO_ID,
                "frame_index": frame.index,
            }
        )
        for found in frame.objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[run.category(found.object_id)],
                    "segmentation": encode_mask(found.mask),
                    "area": found.area_px,
                    "bbox": found.xywh,
                    "iscrowd": 0,
                    "track_id": found.object_id,
                    "video_id": _VIDEO_ID,
                    "frame_index": frame.index,
                    "score": round(found.confidence, 4),
                }
            )
    _write(path, run, {"videos": [_video(run)], "images": images, "annotations": annotations})


def write_youtube_vis(run: LabeledRun, path: Path) -> None:
    """Write one YouTube-VIS JSON file: an annotation per object, with a mask (or null) per frame.

    Raises:
        OutputError: It cannot be written.
    """
    height, width = run.run.image_hw
    names = [f"{name}.jpg" for name in run.frame_names()]
    category_ids = _category_ids(run)
    annotations = {
        number: {
            "id": place + 1,
            "video_id": _VIDEO_ID,
            "category_id": category_ids[run.category(number)],
            "track_id": number,
            "height": height,
            "width": width,
            "length": len(names),
            "iscrowd": 0,
            "score": round(run.confidence(number), 4),
            "segmentations": [None] * len(names),
            "bboxes": [None] * len(names),
            "areas": [None] * len(names),
        }
        for place, number in enumerate(run.object_ids)
    }
    for frame in run:
        for found in frame.objects:
            annotation: dict[str, Any] = annotations[found.object_id]
            annotation["segmentations"][frame.position] = encode_mask(found.mask)
            annotation["bboxes"][frame.position] = found.xywh
            annotation["areas"][frame.position] = found.area_px
    video = {**_video(run), "length": len(names), "file_names": names}
    _write(path, run, {"videos": [video], "annotations": list(annotations.values())})


def _category_ids(run: LabeledRun) -> dict[str, int]:
    return {name: place + 1 for place, name in enumerate(run.categories)}


def _video(run: LabeledRun) -> dict[str, Any]:
    height, width = run.run.image_hw
    return {"id": _VIDEO_ID, "name": run.run.name, "height": height, "width": width}


def _write(path: Path, run: LabeledRun, values: dict[str, Any]) -> None:
    categories = [{"id": number, "name": name} for name, number in _category_ids(run).items()]
    info = {"description": f"liftstream: {run.run.name}"}
    content = {"info": info, "licenses": [], **values, "categories": categories}
    write_text_whole(path, json.dumps(content, separators=(",", ":")) + "\n")
