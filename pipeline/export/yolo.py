"""YOLO segmentation in the layout of ultralytics: ``data.yaml``, ``labels/train/NAME.txt``, ``images/train``.

Format: https://docs.ultralytics.com/datasets/segment/. A line is ``class x1 y1 x2 y2 ...`` with corners as
fractions of the width and height. An object is one polygon: its pieces are joined, its holes are filled.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from pipeline.core.files import path_inside, write_text_whole
from pipeline.export.labeled_run import LabeledFrame, LabeledRun
from pipeline.export.polygons import mask_polygon

SPLIT = "train"
_DECIMALS = 6


def write_yolo(run: LabeledRun, folder: Path) -> None:
    """Write labels and ``data.yaml``; a frame without objects gets an empty file.

    Raises:
        OutputError: The folder cannot be written.
    """
    classes = run.categories
    for frame in run:
        path = path_inside(folder, "labels", SPLIT, f"{frame.name}.txt")
        write_text_whole(path, "".join(_lines(run, frame, classes)))
    path_inside(folder, "images", SPLIT).mkdir(parents=True, exist_ok=True)
    data = {"path": ".", "train": f"images/{SPLIT}", "val": f"images/{SPLIT}", "names": dict(enumerate(classes))}
    write_text_whole(folder / "data.yaml", yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def _lines(run: LabeledRun, frame: LabeledFrame, classes: list[str]) -> list[str]:
    height, width = run.run.image_hw
    lines = []
    for found in frame.objects:
        corners = mask_polygon(found.mask) / [width, height]
        text = " ".join(f"{value:.{_DECIMALS}f}" for value in corners.ravel().tolist())
        lines.append(f"{classes.index(run.category(found.object_id))} {text}\n")
    return lines
