"""CelebA and CUB-200-2011: images with keypoints, in the layouts in which they are published.

CelebA (Liu et al. 2015), images "in the wild" or aligned::

    ROOT/Anno/list_landmarks_celeba.txt          count, names, then: 000001.jpg x y x y ... (5 points)
    ROOT/Anno/list_landmarks_align_celeba.txt    the same for the aligned images
    ROOT/Anno/list_bbox_celeba.txt               000001.jpg left top width height
    ROOT/Eval/list_eval_partition.txt            000001.jpg 0 (train), 1 (validation) or 2 (test)
    ROOT/Img/img_celeba/, ROOT/Img/img_align_celeba/
    ROOT/MAFL/training.txt, testing.txt          names of the 19,000 and 1,000 images of MAFL; optional

The text files may also lie in ROOT itself, and the folders of images too. CUB-200-2011 (Wah et al. 2011)::

    ROOT/images.txt, image_class_labels.txt, train_test_split.txt, bounding_boxes.txt
    ROOT/parts/parts.txt, ROOT/parts/part_locs.txt
    ROOT/images/<class>/<name>.jpg
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.core.errors import LabelFileError, MediaError
from pipeline.formats.json_file import shorten

CELEBA_POINTS: Final = ("left eye", "right eye", "nose", "left mouth corner", "right mouth corner")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LandmarkImage:
    """One image and its keypoints.

    Attributes:
        path: The image file.
        points: float64 ``(K, 2)`` as (x, y) in image pixels.
        visible: bool ``(K,)``.
        unit: What an error is divided by, in pixels along x and y: the distance of the eyes for CelebA, the box's
            width and height for CUB.
        train: Whether it belongs to the training set.
    """

    path: Path
    points: npt.NDArray[np.float64]
    visible: npt.NDArray[np.bool_]
    unit: tuple[float, float]
    train: bool


@dataclass(frozen=True, slots=True)
class LandmarkSet:
    """Images of one kind.

    Attributes:
        name: ``CelebA``, or a class of CUB.
        point_names: Names of the K keypoints.
        images: In the file's order.
    """

    name: str
    point_names: tuple[str, ...]
    images: tuple[LandmarkImage, ...]


def read_celeba(root: Path, *, aligned: bool = False, min_face: float = 0.0) -> LandmarkSet:
    """CelebA's images with their five points; training and test set of MAFL where its lists are there.

    Args:
        root: The folder.
        aligned: Use the aligned images.
        min_face: Leave out images whose face box covers a smaller share of the image; needs the file of boxes, and
            opens every image for its size.

    Raises:
        MediaError: The folder does not have the layout.
        LabelFileError: A line that cannot be used.
    """
    kind = "align_celeba" if aligned else "celeba"
    listing = _first_of(root, f"Anno/list_landmarks_{kind}.txt", f"list_landmarks_{kind}.txt")
    folder = _first_of(root, f"Img/img_{kind}", f"img_{kind}", folder=True)
    points = dict(
        _rows(listing, 1 + 2 * len(CELEBA_POINTS), lambda row: (row[0], [float(v) for v in row[1:]]), skip=2)
    )
    parts = _celeba_parts(root)
    wanted = [name for name in points if name in parts]
    if min_face > 0:
        wanted = _large_faces(root, folder, wanted, min_face)
    images = []
    for name in wanted:
        own = np.asarray(points[name], np.float64).reshape(-1, 2)
        eyes = float(np.hypot(*(own[0] - own[1])))
        if eyes > 0:
            visible = np.ones(len(own), np.bool_)
            images.append(LandmarkImage(_inside(folder, name, listing), own, visible, (eyes, eyes), parts[name]))
    return _checked(LandmarkSet("CelebA", CELEBA_POINTS, tuple(images)), root)


def _celeba_parts(root: Path) -> dict[str, bool]:
    """Whether each image that is used is for training."""
    for place in ("MAFL/", ""):
        lists = [root / f"{place}{name}.txt" for name in ("training", "testing")]
        if all(path.is_file() for path in lists):
            return {
                name: train
                for path, train in zip(lists, (True, False), strict=True)
                for name in _rows(path, 1, lambda row: row[0])
            }
    partition = _first_of(root, "Eval/list_eval_partition.txt", "list_eval_partition.txt")
    numbers = _rows(partition, 2, lambda row: (row[0], int(row[1])))
    return {name: number == 0 for name, number in numbers if number in (0, 2)}


def _large_faces(root: Path, folder: Path, names: Sequence[str], share: float) -> list[str]:
    listing = _first_of(root, "Anno/list_bbox_celeba.txt", "list_bbox_celeba.txt")
    areas = dict(_rows(listing, 5, lambda row: (row[0], float(row[3]) * float(row[4])), skip=2))
    kept = []
    for name in names:
        with Image.open(_inside(folder, name, listing)) as image:
            if areas.get(name, 0.0) >= share * image.width * image.height:
                kept.append(name)
    return kept


def read_cub(root: Path, classes: Iterable[int]) -> list[LandmarkSet]:
    """Classes of CUB-200-2011 with their 15 points; those that the annotators could not see are not visible.

    Args:
        root: The folder CUB_200_2011.
        classes: Numbers of the classes, from 1.

    Raises:
        MediaError: The folder does not have the layout, or a class has no images for training or testing.
        LabelFileError: A line that cannot be used.
    """
    files = {name: _first_of(root, f"{name}.txt") for name in ("images", "image_class_labels", "train_test_split")}
    boxes_file, points_file = _first_of(root, "bounding_boxes.txt"), _first_of(root, "parts/part_locs.txt")
    names_file = _first_of(root, "parts/parts.txt")
    names = dict(_rows(names_file, 2, lambda row: (int(row[0]), " ".join(row[1:])), words=True))
    paths = dict(_rows(files["images"], 2, lambda row: (int(row[0]), row[1])))
    class_of = dict(_rows(files["image_class_labels"], 2, lambda row: (int(row[0]), int(row[1]))))
    train = dict(_rows(files["train_test_split"], 2, lambda row: (int(row[0]), row[1] == "1")))
    boxes = dict(_rows(boxes_file, 5, lambda row: (int(row[0]), (float(row[3]), float(row[4])))))
    points: dict[int, dict[int, tuple[float, float, bool]]] = {}
    for image, part, x, y, seen in _rows(
        points_file, 5, lambda row: (int(row[0]), int(row[1]), float(row[2]), float(row[3]), row[4] == "1")
    ):
        points.setdefault(image, {})[part] = (x, y, seen)
    found = []
    for number in classes:
        images = []
        for image, own_class in class_of.items():
            if own_class != number:
                continue
            try:
                own = [points[image][part] for part in names]
                entry = LandmarkImage(
                    _inside(root / "images", paths[image], files["images"]),
                    np.asarray([[x, y] for x, y, _ in own], np.float64),
                    np.asarray([seen for _, _, seen in own], np.bool_),
                    boxes[image],
                    train[image],
                )
            except KeyError as error:
                raise LabelFileError(
                    f"{root}: image {image} lacks its path, box, split or part {error}"
                ) from error
            if min(entry.unit) <= 0:
                raise LabelFileError(f"{boxes_file}: the box of image {image} has no area")
            images.append(entry)
        found.append(_checked(LandmarkSet(f"CUB-{number:03d}", tuple(names.values()), tuple(images)), root))
    return found


def _first_of(root: Path, *places: str, folder: bool = False) -> Path:
    for place in places:
        path = root / place
        if path.is_dir() if folder else path.is_file():
            return path
    raise MediaError(f"{root}: {' or '.join(places)} is missing; see docs/landmarks.md for the layout")


def _rows(
    path: Path, columns: int, convert: Callable[[list[str]], T], *, skip: int = 0, words: bool = False
) -> list[T]:
    """The lines of a text file, converted.

    Args:
        path: The file.
        columns: Number of words per line.
        convert: From the words of a line.
        skip: Lines at the start that are left out.
        words: Whether a line may have more words.

    Raises:
        LabelFileError: A line with another number of words, or with a word that is not the number it should be.
    """
    found = []
    for place, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines()):
        row = line.split()
        if place < skip or not row:
            continue
        if len(row) < columns or (len(row) > columns and not words):
            raise LabelFileError(f"{path}:{place + 1}: has {len(row)} words instead of {columns}")
        try:
            value = convert(row)
        except ValueError as error:
            raise LabelFileError(f"{path}:{place + 1}: {shorten(line)} is not a line of numbers") from error
        if not all(math.isfinite(v) for v in _flat_floats(value)):
            raise LabelFileError(f"{path}:{place + 1}: holds a value that is not finite")
        found.append(value)
    return found


def _flat_floats(value: object) -> list[float]:
    if isinstance(value, float):
        return [value]
    if isinstance(value, list | tuple):
        return [number for item in value for number in _flat_floats(item)]
    return []


def _inside(folder: Path, name: str, listing: Path) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise LabelFileError(f"{listing}: {shorten(name)} leads out of {folder}")
    return path


def _checked(found: LandmarkSet, root: Path) -> LandmarkSet:
    counts = [sum(image.train == train for image in found.images) for train in (True, False)]
    if not all(counts):
        raise MediaError(f"{root}: {found.name} has {counts[0]} images for training and {counts[1]} for testing")
    return found
