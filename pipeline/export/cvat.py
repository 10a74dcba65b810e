"""CVAT for video 1.1: one track per object, a polygon or a mask in every frame.

Format: https://docs.cvat.ai/docs/manual/advanced/xml_format/. CVAT interpolates between key frames; every frame
here is one, and a frame in which the object is gone is marked ``outside``. CVAT turns tracks of masks into single
shapes when it imports them, so polygons are the default; masks are exact to the pixel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import numpy as np

from pipeline.core.files import write_bytes_whole
from pipeline.export.labeled_run import LabeledRun, ObjectMask
from pipeline.export.polygons import mask_polygon
from pipeline.formats.rle import run_lengths

Shape = Literal["polygon", "mask"]


def write_cvat(run: LabeledRun, path: Path, *, shape: Shape = "polygon") -> None:
    """Write one XML file; frames count from 0 in the order of the run.

    Raises:
        OutputError: It cannot be written.
    """
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    root.append(_meta(run))
    tracks = {
        number: ElementTree.SubElement(
            root, "track", id=str(number), label=run.category(number), source="automatic"
        )
        for number in run.object_ids
    }
    visible: dict[int, ElementTree.Element] = {}
    for frame in run:
        now = {found.object_id: _shape(found, frame.position, shape) for found in frame.objects}
        for number, last in visible.items():
            if number not in now:
                tracks[number].append(_outside(last, frame.position))
        for number, element in now.items():
            tracks[number].append(element)
        visible = now
    ElementTree.indent(root)
    write_bytes_whole(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _meta(run: LabeledRun) -> ElementTree.Element:
    height, width = run.run.image_hw
    meta = ElementTree.Element("meta")
    task = ElementTree.SubElement(meta, "task")
    facts = {"name": run.run.name, "size": str(len(run.paths)), "mode": "interpolation", "overlap": "0"}
    facts |= {"start_frame": "0", "stop_frame": str(len(run.paths) - 1)}
    for name, value in facts.items():
        ElementTree.SubElement(task, name).text = value
    labels = ElementTree.SubElement(task, "labels")
    for category in run.categories:
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = category
        ElementTree.SubElement(label, "attributes")
    size = ElementTree.SubElement(task, "original_size")
    ElementTree.SubElement(size, "width").text = str(width)
    ElementTree.SubElement(size, "height").text = str(height)
    return meta


def _shape(found: ObjectMask, frame: int, shape: Shape) -> ElementTree.Element:
    common = {"frame": str(frame), "keyframe": "1", "outside": "0", "occluded": "0", "z_order": "0"}
    if shape == "polygon":
        points = ";".join(f"{x}.00,{y}.00" for x, y in mask_polygon(found.mask).tolist())
        return ElementTree.Element("polygon", {**common, "points": points})
    left, top, right, bottom = found.xyxy
    inside = found.mask[top:bottom, left:right]
    # CVAT counts row by row inside the box, unlike COCO.
    counts = ", ".join(str(n) for n in run_lengths(np.ascontiguousarray(inside).ravel()).tolist())
    box = {"left": str(left), "top": str(top), "width": str(right - left), "height": str(bottom - top)}
    return ElementTree.Element("mask", {**common, "rle": counts, **box})


def _outside(last: ElementTree.Element, frame: int) -> ElementTree.Element:
    return ElementTree.Element(last.tag, {**last.attrib, "frame": str(frame), "outside": "1"})
