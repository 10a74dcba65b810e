"""CorLoc: in how many images the one predicted box hits an object; and Pascal VOC's annotation files."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from pipeline.core.arrays import box_iou
from pipeline.core.errors import LabelFileError

Box = tuple[float, float, float, float]


def corloc(boxes: Sequence[Box], truths: Sequence[Sequence[Box]], threshold: float = 0.5) -> float:
    """Share of the images whose box has an IoU of at least ``threshold`` with any true box.

    >>> corloc([(0, 0, 10, 10), (0, 0, 1, 1)], [[(0, 0, 10, 9)], [(5, 5, 9, 9)]])
    0.5

    Raises:
        ValueError: There are no images, or not one list of true boxes for each.
    """
    if not boxes or len(boxes) != len(truths):
        raise ValueError(f"{len(boxes)} boxes for {len(truths)} annotated images")
    hits = [bool((box_iou([box], found) >= threshold).any()) for box, found in zip(boxes, truths, strict=True)]
    return sum(hits) / len(hits)


def read_voc_boxes(path: Path, *, difficult: bool = True) -> list[Box]:
    """The objects of a Pascal VOC annotation as continuous, 0-based (left, top, right, bottom).

    VOC counts pixels from 1 and includes the last one, so 1 is taken from the first corner only.

    Args:
        path: The .xml file.
        difficult: Keep objects marked difficult, as CorLoc is usually computed.

    Raises:
        LabelFileError: The file is missing, is not XML, or an object has no box.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise LabelFileError(f"{path}: cannot be read as a Pascal VOC annotation ({error})") from error
    boxes: list[Box] = []
    for number, entry in enumerate(root.iter("object"), start=1):
        if not difficult and entry.findtext("difficult", "0").strip() == "1":
            continue
        corner = {name: entry.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")}
        try:
            left, top, right, bottom = (float(corner[name] or "") for name in ("xmin", "ymin", "xmax", "ymax"))
        except ValueError as error:
            raise LabelFileError(f"{path}: object {number} has no complete bndbox") from error
        boxes.append((left - 1.0, top - 1.0, right, bottom))
    return boxes
