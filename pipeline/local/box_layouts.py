"""Readers of data sets with boxes or outlines instead of a label image: FAIR1M and COCO.

::

    FAIR1M   .../images/0.tif with .../labelXml/0.xml (or labelXmls), anywhere under ROOT
    COCO     ROOT/annotations/instances_train2017.json with ROOT/train2017/000000000009.jpg, or one JSON file

FAIR1M (Sun et al. 2021, https://arxiv.org/abs/2103.05569) has rotated boxes as four corners in pixels, 37 classes
in five groups. COCO outlines are polygons, run-length codes or, without both, the box.

Every object is drawn into one label image, the large ones first, so that a small one on a large one stays.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import LabelFileError, MediaError
from pipeline.core.files import IMAGE_SUFFIXES, natural_key
from pipeline.formats.json_file import load_json
from pipeline.formats.outlines import fill_outlines
from pipeline.formats.rle import decode_mask, mask_of_counts
from pipeline.local.labeled_set import LabelClass, LabeledImage, LabeledSet, Labels

Polygon = npt.NDArray[np.float32]

FAIR1M_GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "Airplane": (
        "Boeing737", "Boeing747", "Boeing777", "Boeing787", "C919", "A220", "A321", "A330", "A350", "ARJ21",
        "other-airplane",
    ),
    "Ship": (
        "Passenger Ship", "Motorboat", "Fishing Boat", "Tugboat", "Engineering Ship", "Liquid Cargo Ship",
        "Dry Cargo Ship", "Warship", "other-ship",
    ),
    "Vehicle": (
        "Small Car", "Bus", "Cargo Truck", "Dump Truck", "Van", "Trailer", "Tractor", "Excavator",
        "Truck Tractor", "other-vehicle",
    ),
    "Court": ("Basketball Court", "Tennis Court", "Football Field", "Baseball Field"),
    "Road": ("Intersection", "Roundabout", "Bridge"),
}  # fmt: skip
"""FAIR1M's classes by group."""

_BACKGROUND = LabelClass("background", "background", is_background=True)
_SPLITS: Final = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test"}


def read_fair1m(root: Path) -> LabeledSet:
    """FAIR1M: 37 classes of objects and background; the group is the folder above the images.

    Raises:
        MediaError: There is no annotation with an image.
        LabelFileError: A file that is not FAIR1M's XML, or an unknown class.
    """
    classes = [LabelClass(name, group) for group, names in FAIR1M_GROUPS.items() for name in names]
    index = {_plain(c.name): number for number, c in enumerate(classes, start=1)}
    if not root.is_dir():
        raise MediaError(f"{root}: no such folder")
    images = []
    for xml in sorted(root.rglob("*.xml"), key=lambda p: natural_key(p.relative_to(root).as_posix())):
        path = _picture_of(xml)
        base = xml.parent.parent.relative_to(root)
        split = next((_SPLITS[part] for part in base.parts if part in _SPLITS), "")
        name = f"{base.as_posix()}/{xml.stem}".removeprefix("./")
        images.append(LabeledImage(name, path, split, base.as_posix(), partial(_draw_fair1m, xml, index)))
    if not images:
        raise MediaError(f"{root}: not FAIR1M: no .xml annotations under it (labelXml/0.xml beside images/0.tif)")
    return LabeledSet((_BACKGROUND, *classes), tuple(images))


def _picture_of(xml: Path) -> Path:
    for folder in (xml.parent.parent / "images", xml.parent):
        for suffix in sorted(IMAGE_SUFFIXES):
            path = folder / f"{xml.stem}{suffix}"
            if path.is_file():
                return path
    raise MediaError(f"{xml}: has no image; expected {xml.parent.parent / 'images' / xml.stem}.tif")


def _plain(name: str) -> str:
    """A class name without case, spaces, hyphens and underscores: the releases spell some differently."""
    return "".join(character for character in name.lower() if character.isalnum())


def _draw_fair1m(xml: Path, index: Mapping[str, int], image_hw: tuple[int, int]) -> Labels:
    objects = read_fair1m_boxes(xml)
    unknown = [name for name, _ in objects if _plain(name) not in index]
    if unknown:
        raise LabelFileError(f"{xml}: unknown class '{unknown[0]}'; FAIR1M has {len(index)} classes")
    return draw_objects(
        [(index[_plain(name)], partial(fill_outlines, [polygon])) for name, polygon in objects], image_hw
    )


def read_fair1m_boxes(xml: Path) -> list[tuple[str, Polygon]]:
    """Class and corners ``(4, 2)`` as (x, y) in pixels of every object.

    Raises:
        LabelFileError: The file is missing, is not XML, or an object has no class or no corners.
    """
    try:
        root = ElementTree.parse(xml).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise LabelFileError(f"{xml}: cannot be read as a FAIR1M annotation ({error})") from error
    found = []
    for number, entry in enumerate(root.iter("object"), start=1):
        name = (entry.findtext("possibleresult/name") or "").strip()
        try:
            points = [[float(v) for v in (p.text or "").split(",")] for p in entry.findall("points/point")]
            corners = np.array(points, np.float32).reshape(-1, 2)
        except ValueError as error:
            raise LabelFileError(f"{xml}: object {number}: a point is not written x,y") from error
        if not name or len(corners) < 3 or not np.isfinite(corners).all():
            raise LabelFileError(f"{xml}: object {number} needs possibleresult/name and at least three points")
        if len(corners) > 3 and (corners[0] == corners[-1]).all():
            corners = corners[:-1]
        found.append((name, corners))
    return found


Fill = Callable[[tuple[int, int]], npt.NDArray[np.bool_]]
"""Gives an object's pixels ``(H, W)`` for an image of a size."""


def draw_objects(objects: Sequence[tuple[int, Fill]], image_hw: tuple[int, int]) -> Labels:
    """Objects as one label image, larger ones below smaller ones; 0 where there is none."""
    masks = [(index, fill(image_hw)) for index, fill in objects]
    labels = np.zeros(image_hw, np.int16)
    for index, mask in sorted(masks, key=lambda entry: -int(entry[1].sum())):
        labels[mask] = index
    return labels


def read_coco(source: Path, pictures: Path | None = None) -> LabeledSet:
    """A COCO data set: its categories and background; the group is the JSON file.

    Args:
        source: One JSON file with images, annotations and categories, or a root with
            ``annotations/instances_*.json``.
        pictures: Folder of the images; by default the places where COCO and common tools put them.

    Raises:
        MediaError: An image is missing.
        LabelFileError: A file that is not COCO's, or files with different categories.
    """
    files = [source]
    if source.is_dir():
        files = sorted((source / "annotations").glob("instances_*.json"))
        if not files:
            raise MediaError(f"{source}: not COCO: no annotations/instances_*.json in it; or give one JSON file")
    contents = [(path, _content(path)) for path in files]
    categories = _categories(*contents[0])
    images: list[LabeledImage] = []
    for path, content in contents:
        if _categories(path, content) != categories:
            raise LabelFileError(f"{path}: its categories differ from those of {files[0]}")
        images.extend(_coco_images(path, content, {c: n for n, c in enumerate(categories, start=1)}, pictures))
    if not images:
        raise MediaError(f"{source}: has no images")
    return LabeledSet((_BACKGROUND, *categories.values()), tuple(images))


def _content(path: Path) -> Mapping[str, Any]:
    content = load_json(path)
    keys = ("images", "annotations", "categories")
    if not isinstance(content, Mapping) or not all(isinstance(content.get(key), list) for key in keys):
        raise LabelFileError(f"{path}: expected a COCO data set with images, annotations and categories")
    for key in keys:
        for place, entry in enumerate(content[key]):
            needed = "image_id" if key == "annotations" else "id"
            if not isinstance(entry, Mapping) or not isinstance(entry.get(needed), int | str):
                raise LabelFileError(f"{path}: {key}: entry {place} has no {needed}")
    return content


def _categories(path: Path, content: Mapping[str, Any]) -> dict[int | str, LabelClass]:
    found = {}
    for entry in content["categories"]:
        name = str(entry.get("name", entry["id"]))
        found[entry["id"]] = LabelClass(name, str(entry.get("supercategory") or name))
    if not found:
        raise LabelFileError(f"{path}: has no categories")
    return found


def _coco_images(
    path: Path, content: Mapping[str, Any], index: Mapping[int | str, int], pictures: Path | None
) -> list[LabeledImage]:
    by_image: dict[int | str, list[tuple[int, Fill]]] = defaultdict(list)
    for place, entry in enumerate(content["annotations"]):
        where = f"{path}: annotation {place}"
        if entry.get("category_id") not in index:
            raise LabelFileError(f"{where}: category_id {entry.get('category_id')} is not in categories")
        by_image[entry["image_id"]].append((index[entry["category_id"]], _outline(entry, where)))
    stem = path.stem.removeprefix("instances_")
    split = next((name for key, name in _SPLITS.items() if key in stem), "")
    return [
        LabeledImage(
            f"{stem}/{Path(str(entry['file_name'])).with_suffix('').as_posix()}",
            _find_picture(path, stem, str(entry["file_name"]), pictures),
            split,
            stem,
            partial(draw_objects, by_image[entry["id"]]),
        )
        for entry in sorted(content["images"], key=lambda e: natural_key(str(e.get("file_name", ""))))
        if "file_name" in entry
    ]


def _find_picture(annotations: Path, split: str, name: str, pictures: Path | None) -> Path:
    above = annotations.parent
    folders = [above, above / "images", above.parent / split, above.parent / "images" / split, above.parent]
    for folder in [pictures] if pictures else folders:
        if (folder / name).is_file():
            return folder / name
    raise MediaError(f"{annotations}: image {name} is not there; name the folder of images with --images")


def _outline(entry: Mapping[str, Any], where: str) -> Fill:
    """What fills an annotation's pixels: its outline, or its box."""
    outline = entry.get("segmentation")
    try:
        if isinstance(outline, Mapping):
            size, counts = [int(v) for v in outline["size"]], outline["counts"]
            runs = counts if isinstance(counts, str) else [int(c) for c in counts]
            return partial(_decode, runs, (size[0], size[1]), where)
        if outline:
            return partial(fill_outlines, [np.array(polygon, np.float32).reshape(-1, 2) for polygon in outline])
        left, top, width, height = (float(v) for v in entry["bbox"])
    except (KeyError, TypeError, ValueError) as error:
        raise LabelFileError(f"{where}: needs a segmentation or bbox as [left, top, width, height]") from error
    right, bottom = left + width, top + height
    return partial(
        fill_outlines, [np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float32)]
    )


def _decode(
    counts: str | list[int], size_hw: tuple[int, int], where: str, image_hw: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    if size_hw != image_hw:
        raise LabelFileError(f"{where}: its mask is of {size_hw}, its image of {image_hw} pixels (height, width)")
    try:
        if isinstance(counts, str):
            return decode_mask(counts, size_hw)
        return mask_of_counts(counts, size_hw)
    except ValueError as error:
        raise LabelFileError(f"{where}: its run lengths do not fill its mask ({error})") from error
