"""Images with labeled objects in COCO's layout: a JSON file, and a folder its file names are relative to.

Format: https://cocodataset.org/#format-data. A segmentation is a list of polygons, uncompressed or compressed RLE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from pipeline.core.errors import LabelFileError, MediaError
from pipeline.detect.heads import Target
from pipeline.detect.model import Placement
from pipeline.formats.json_file import is_index, load_json, shorten
from pipeline.formats.outlines import fill_outlines
from pipeline.formats.rle import decode_mask, mask_of_counts

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CocoObject:
    """One labeled object.

    Attributes:
        label: Place of its class in the list of categories.
        xywh: Left, top, width and height in image pixels.
        segmentation: As in the file; None where it has a box only.
    """

    label: int
    xywh: tuple[float, float, float, float]
    segmentation: Any = None


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One image and its objects, without crowds.

    Attributes:
        image_id: As in the file.
        path: The image file.
        image_hw: Its size as the file says it.
        objects: The objects.
    """

    image_id: int
    path: Path
    image_hw: tuple[int, int]
    objects: tuple[CocoObject, ...]


@dataclass(frozen=True, slots=True)
class CocoSet:
    """A labeled set of images.

    Attributes:
        path: The JSON file.
        images: In the file's order.
        categories: Names by number, in the file's order.
    """

    path: Path
    images: tuple[CocoImage, ...]
    categories: dict[int, str]


def read_coco(annotations: Path, images: Path) -> CocoSet:
    """Read a data set; image files are looked for, not opened.

    Args:
        annotations: The JSON file.
        images: Folder that the file names are relative to.

    Raises:
        LabelFileError: An entry that cannot be used; the message has its position.
        MediaError: An image that is not there.
    """
    content = load_json(annotations)
    lists = {key: _objects(content, key, annotations) for key in ("images", "annotations", "categories")}
    categories = {
        _number(entry, "id", f"{annotations}: category {place}"): str(entry.get("name", entry.get("id")))
        for place, entry in enumerate(lists["categories"])
    }
    if not categories or not lists["images"]:
        raise LabelFileError(f"{annotations}: holds no {'categories' if lists['images'] else 'images'}")
    labels = {number: place for place, number in enumerate(categories)}
    found: dict[int, list[CocoObject]] = {}
    for place, entry in enumerate(lists["annotations"]):
        where = f"{annotations}: annotation {place}"
        image = _number(entry, "image_id", where)
        if not entry.get("iscrowd"):
            found.setdefault(image, []).append(_read_object(entry, labels, where))
    entries = [
        _read_image(entry, images, found, f"{annotations}: image {place}")
        for place, entry in enumerate(lists["images"])
    ]
    strangers = set(found) - {entry.image_id for entry in entries}
    if strangers:
        raise LabelFileError(f"{annotations}: annotations of image {min(strangers)}, which is not in 'images'")
    return CocoSet(annotations, tuple(entries), categories)


def _objects(content: Any, key: str, path: Path) -> list[Mapping[str, Any]]:
    values = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(values, list) or not all(isinstance(value, Mapping) for value in values):
        raise LabelFileError(f"{path}: '{key}' must be a list of objects (COCO JSON)")
    return values


def _number(entry: Mapping[str, Any], key: str, where: str) -> int:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 2**53:
        raise LabelFileError(f"{where}: {key} must be a whole number, got {shorten(value)}")
    return value


def _read_image(
    entry: Mapping[str, Any], folder: Path, found: Mapping[int, Sequence[CocoObject]], where: str
) -> CocoImage:
    number = _number(entry, "id", where)
    name = entry.get("file_name")
    height, width = entry.get("height"), entry.get("width")
    if not isinstance(name, str) or not name:
        raise LabelFileError(f"{where}: file_name must be text, got {shorten(name)}")
    if not (is_index(height) and is_index(width) and height and width):
        raise LabelFileError(f"{where}: needs height and width in pixels")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise LabelFileError(f"{where}: file_name {shorten(name)} leads out of {folder}")
    if not path.is_file():
        raise MediaError(f"{path}: no such image; {where} names it, and --images is the folder it is relative to")
    return CocoImage(number, path, (height, width), tuple(found.get(number, ())))


def _read_object(entry: Mapping[str, Any], labels: Mapping[int, int], where: str) -> CocoObject:
    category = _number(entry, "category_id", where)
    if category not in labels:
        raise LabelFileError(f"{where}: category {category} is not in 'categories'")
    try:
        left, top, width, height = (float(value) for value in entry["bbox"])
    except (KeyError, TypeError, ValueError) as error:
        raise LabelFileError(f"{where}: needs bbox as [left, top, width, height]") from error
    if not all(map(math.isfinite, (left, top, width, height))) or min(width, height) <= 0:
        raise LabelFileError(f"{where}: bbox {shorten(entry['bbox'])} has no area")
    return CocoObject(labels[category], (left, top, width, height), entry.get("segmentation"))


def object_mask(item: CocoObject, image_hw: tuple[int, int], where: str) -> Mask:
    """The mask ``(H, W)`` of an object; its box where the file has no segmentation.

    Args:
        item: The object.
        image_hw: Height and width of the image.
        where: The file, for errors.

    Raises:
        LabelFileError: The segmentation cannot be read or is for another size.
    """
    try:
        if item.segmentation is None or item.segmentation == []:
            left, top, width, height = item.xywh
            mask = np.zeros(image_hw, np.bool_)
            mask[max(0, round(top)) : round(top + height), max(0, round(left)) : round(left + width)] = True
            return mask
        if isinstance(item.segmentation, list):
            polygons = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in item.segmentation]
            return fill_outlines(polygons, image_hw)
        counts, size = item.segmentation["counts"], tuple(item.segmentation["size"])
        if size != image_hw:
            raise ValueError(f"its size is {size}, the image's {image_hw}")
        if isinstance(counts, str):
            return decode_mask(counts, image_hw)
        return mask_of_counts(counts, image_hw)
    except (KeyError, TypeError, ValueError, OverflowError, cv2.error) as error:
        raise LabelFileError(
            f"{where}: a segmentation cannot be read ({' '.join(str(error).split())[:120]})"
        ) from error


def make_target(image: CocoImage, place: Placement, canvas_hw: tuple[int, int], *, mirrored: bool) -> Target:
    """An image's objects in the pixels of the model's input.

    Args:
        image: The image.
        place: Where it lies in the input.
        canvas_hw: The input's size.
        mirrored: Whether the image is mirrored left to right.
    """
    height, width = place.size_hw
    boxes, masks = [], []
    for item in image.objects:
        left, top, w, h = item.xywh
        scaled = np.asarray([left, top, left + w, top + h]) * place.factors()
        if mirrored:
            scaled = np.asarray([width - scaled[2], scaled[1], width - scaled[0], scaled[3]])
        whole = object_mask(item, image.image_hw, str(image.path)).astype(np.float32)
        small = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA) >= 0.5
        mask = np.zeros(canvas_hw, np.uint8)
        mask[:height, :width] = small[:, ::-1] if mirrored else small
        boxes.append(scaled.clip(0, [width, height, width, height]))
        masks.append(mask)
    return {
        "boxes": torch.tensor(np.reshape(boxes, (-1, 4)), dtype=torch.float32),
        "labels": torch.tensor([item.label + 1 for item in image.objects], dtype=torch.int64),
        "masks": torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *canvas_hw), np.uint8)),
    }
