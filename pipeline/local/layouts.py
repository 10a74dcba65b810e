"""Readers of data sets with a label image per picture: Cityscapes, ADE20K, DAVIS, and plain folders.

::

    Cityscapes   ROOT/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png
                 ROOT/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png
    ADE20K       ROOT/images/training/ADE_train_00000001.jpg
                 ROOT/annotations/training/ADE_train_00000001.png          (SceneParsing: 0 is unlabeled)
                 ROOT/objectInfo150.txt                                    (names; optional)
    DAVIS        ROOT/JPEGImages/480p/dog/00000.jpg, ROOT/Annotations/480p/dog/00000.png
    folder       ROOT/images/a.jpg, ROOT/masks/a.png, or ROOT/train/images/..., ROOT/val/images/...
                 ROOT/classes.json or classes.txt                          (names; optional)

Cityscapes: 34 label ids, of which 19 are evaluated (https://github.com/mcordts/cityscapesScripts,
``helpers/labels.py``). ADE20K: 150 classes of the SceneParsing benchmark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import LabelFileError, MaskError, MediaError
from pipeline.core.files import list_images
from pipeline.formats.davis import DavisSequence, open_davis
from pipeline.formats.json_file import load_json
from pipeline.formats.masks import VOID, single_object
from pipeline.formats.palette import read_indexed_png
from pipeline.local.labeled_set import IGNORED, LabelClass, LabeledImage, LabeledSet, Labels, through_table

_NOT_A_CLASS: Final = -2

CITYSCAPES_CLASSES: Final[tuple[tuple[int, str, str], ...]] = (
    (7, "road", "flat"), (8, "sidewalk", "flat"), (11, "building", "construction"), (12, "wall", "construction"),
    (13, "fence", "construction"), (17, "pole", "object"), (19, "traffic light", "object"),
    (20, "traffic sign", "object"), (21, "vegetation", "nature"), (22, "terrain", "nature"), (23, "sky", "sky"),
    (24, "person", "human"), (25, "rider", "human"), (26, "car", "vehicle"), (27, "truck", "vehicle"),
    (28, "bus", "vehicle"), (31, "train", "vehicle"), (32, "motorcycle", "vehicle"), (33, "bicycle", "vehicle"),
)  # fmt: skip
"""Label id, name and category of the evaluated classes, in the order of their train ids."""

_CITYSCAPES_LABEL_IDS: Final = 34
_ADE20K_CLASSES: Final = 150
_ADE20K_SPLITS: Final = {"training": "train", "validation": "val"}


def read_cityscapes(root: Path) -> LabeledSet:
    """Cityscapes with fine labels: 19 classes; the group is the city.

    Raises:
        MediaError: The folders are missing or hold no images.
        MaskError: An image has no label file.
    """
    pictures, truths = _folders(root, "leftImg8bit", "gtFine", layout="Cityscapes")
    table = np.full(256, _NOT_A_CLASS, np.int16)
    table[:_CITYSCAPES_LABEL_IDS] = IGNORED
    table[VOID] = IGNORED  # the license plate's id, -1, as uint8
    for index, (label_id, _, _) in enumerate(CITYSCAPES_CLASSES):
        table[label_id] = index
    images = []
    for path in list_images(pictures, recursive=True):
        name = path.name.removesuffix("".join(path.suffixes)).removesuffix("_leftImg8bit")
        place = path.parent.relative_to(pictures)
        mask = truths / place / f"{name}_gtFine_labelIds.png"
        split = place.parts[0] if place.parts else ""
        if split == "test":
            continue  # its labels are not public
        images.append(_image(name, path, split, place.name, mask, table))
    if not images:
        raise MediaError(f"{pictures}: no images of train or val")
    return LabeledSet(tuple(LabelClass(n, c) for _, n, c in CITYSCAPES_CLASSES), tuple(images))


def read_ade20k(root: Path) -> LabeledSet:
    """ADE20K as the SceneParsing benchmark lays it out: 150 classes; 0 is unlabeled.

    Raises:
        MediaError: The folders are missing or hold no images.
        MaskError: An image has no annotation.
    """
    pictures, truths = _folders(root, "images", "annotations", layout="ADE20K (SceneParsing)")
    table = np.full(256, _NOT_A_CLASS, np.int16)
    table[0] = table[VOID] = IGNORED
    table[1 : _ADE20K_CLASSES + 1] = np.arange(_ADE20K_CLASSES)
    images = []
    for path in list_images(pictures, recursive=True):
        place = path.parent.relative_to(pictures)
        split = _ADE20K_SPLITS.get(place.parts[0] if place.parts else "", place.as_posix())
        images.append(_image(path.stem, path, split, split, truths / place / f"{path.stem}.png", table))
    return LabeledSet(tuple(LabelClass(name, name) for name in _ade20k_names(root)), tuple(images))


def _ade20k_names(root: Path) -> list[str]:
    path = root / "objectInfo150.txt"
    if not path.is_file():
        return [f"class {number}" for number in range(1, _ADE20K_CLASSES + 1)]
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = [line.split("\t") for line in lines if line.split("\t")[0].strip().isdecimal()]
    if len(rows) != _ADE20K_CLASSES:
        raise LabelFileError(f"{path}: expected {_ADE20K_CLASSES} numbered lines, found {len(rows)}")
    return [row[-1].split(",")[0].strip() for row in rows]


def read_davis_set(root: Path, kind: Literal["object", "sequence"] = "object", split: str = "val") -> LabeledSet:
    """DAVIS with objects against background; the group is the sequence.

    Args:
        root: A DAVIS root.
        kind: One class for all objects, or one class per sequence.
        split: Name of the list of sequences, under ``ImageSets/2016``.

    Raises:
        InputError: As for :func:`pipeline.formats.davis.open_davis`.
    """
    sequences = open_davis(root, "2016", split=split)
    background = LabelClass("background", "background", is_background=True)
    names = [sequence.name for sequence in sequences] if kind == "sequence" else ["object"]
    images = []
    for number, sequence in enumerate(sequences, start=1):
        index = number if kind == "sequence" else 1
        paths = {path.stem: path for path in list_images(sequence.frames_dir)}
        for frame in sequence.frame_names:
            read = partial(_read_davis, sequence, frame, index)
            images.append(LabeledImage(f"{sequence.name}/{frame}", paths[frame], "", sequence.name, read))
    return LabeledSet((background, *(LabelClass(name, name) for name in names)), tuple(images))


def _read_davis(sequence: DavisSequence, frame: str, index: int, _: tuple[int, int]) -> Labels:
    return np.asarray(sequence.annotation(frame), np.int16) * np.int16(index)


def read_folder(root: Path) -> LabeledSet:
    """Pictures in ``images``, index masks of the same name in ``masks``; the group is the folder inside.

    Names of classes come from ``classes.json`` (a list of names, or of objects with ``id``, ``name`` and
    perhaps ``supercategory``) or ``classes.txt`` (a name per line, from index 0 on); without them the masks are
    read once for their values. 255 is ignored; a mask of {0, 255} is one object. Class 0 is background unless
    its name says otherwise.

    Raises:
        MediaError: The folders are missing or hold no images.
        MaskError: An image has no mask.
    """
    places = [(name, root / name) for name in ("train", "val", "test") if (root / name / "images").is_dir()]
    found: list[tuple[str, Path, str, str, Path]] = []
    for split, base in places or [("", root)]:
        pictures, truths = _folders(base, "images", "masks", layout="a folder of images with index masks")
        for path in list_images(pictures, recursive=True):
            place = path.parent.relative_to(pictures)
            name = "/".join(part for part in (split, place.as_posix().removeprefix("."), path.stem) if part)
            found.append((name, path, split, place.as_posix(), truths / place / f"{path.stem}.png"))
    names = _folder_classes(root)
    if names is None:
        names = _classes_in(mask for *_, mask in found)
    table = np.full(256, _NOT_A_CLASS, np.int16)
    table[VOID] = IGNORED
    for index, value in enumerate(sorted(names)):
        table[value] = index
    classes = tuple(names[value] for value in sorted(names))
    return LabeledSet(classes, tuple(_image(*entry, table, binary=True) for entry in found))


def _folder_classes(root: Path) -> dict[int, LabelClass] | None:
    """Classes by pixel value from the file of names; None without one."""
    if (root / "classes.json").is_file():
        content = load_json(root / "classes.json")
        if not isinstance(content, list):
            raise LabelFileError(f"{root / 'classes.json'}: expected a list of classes")
        return dict(_json_class(root, place, entry) for place, entry in enumerate(content))
    if (root / "classes.txt").is_file():
        lines = (root / "classes.txt").read_text(encoding="utf-8").splitlines()
        return {v: _folder_class(v, name.strip()) for v, name in enumerate(lines) if name.strip()}
    return None


def _json_class(root: Path, place: int, entry: Any) -> tuple[int, LabelClass]:
    if isinstance(entry, str):
        return place, _folder_class(place, entry)
    value = entry.get("id", place) if isinstance(entry, Mapping) else None
    if not isinstance(value, int) or not 0 <= value < VOID or not isinstance(entry.get("name"), str):
        raise LabelFileError(f"{root / 'classes.json'}: entry {place} needs a name, and an id from 0 to 254")
    return value, _folder_class(value, entry["name"], str(entry.get("supercategory") or entry["name"]))


def _folder_class(value: int, name: str, supercategory: str | None = None) -> LabelClass:
    return LabelClass(name, supercategory or name, value == 0 and name in ("background", "class 0"))


def _classes_in(masks: Iterable[Path]) -> dict[int, LabelClass]:
    values = {int(v) for mask in masks for v in np.unique(single_object(read_indexed_png(mask)))} - {VOID}
    return {v: _folder_class(v, "background" if v == 0 else f"class {v}") for v in sorted(values)}


def _folders(root: Path, pictures: str, truths: str, *, layout: str) -> tuple[Path, Path]:
    for name in (pictures, truths):
        if not (root / name).is_dir():
            raise MediaError(f"{root}: not {layout}: no folder {name} in it")
    return root / pictures, root / truths


def _image(
    name: str,
    path: Path,
    split: str,
    group: str,
    mask: Path,
    table: npt.NDArray[np.int16],
    *,
    binary: bool = False,
) -> LabeledImage:
    """An image with a label file; ``binary`` reads {0, 255} as {0, 1}."""
    if not mask.is_file():
        raise MaskError(f"{path}: has no labels; expected {mask}")
    return LabeledImage(name, path, split, group, partial(_read_table, mask, table, binary))


def _read_table(mask: Path, table: npt.NDArray[np.int16], binary: bool, _: tuple[int, int]) -> Labels:
    values = read_indexed_png(mask)
    return through_table(mask, single_object(values) if binary else values, table)
