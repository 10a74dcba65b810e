"""Detections from any supported file; the format is recognized from suffix and content."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.core.records import VideoInfo
from pipeline.formats import bdd, coco, mot
from pipeline.formats.json_file import load_json
from pipeline.formats.mot import Detected


def read_detections(path: Path, info: VideoInfo) -> Detected:
    """Detections by 0-based frame index, clipped to the video's frames.

    Args:
        path: MOTChallenge text (any suffix but ``.json``), BDD100K box-track JSON or COCO JSON.
        info: The video, for its size, number of frames and frame names.

    Raises:
        LabelFileError: A line or entry that cannot be used, or a file for another video.
    """
    if path.suffix.lower() != ".json":
        return mot.read_detections(path, info)
    content = load_json(path)
    entries = content if isinstance(content, list) else []
    is_coco = isinstance(content, Mapping) and "annotations" in content
    is_coco = is_coco or any(isinstance(e, Mapping) and "bbox" in e for e in entries[:1])
    return coco.read_detections(path, info) if is_coco else bdd.read_detections(path, info)
