"""Small data sets in the official layouts, made for tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

SIZE_HW = (56, 84)
LEFT, RIGHT = slice(0, 42), slice(42, 84)


def save(path: Path, values: npt.NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def picture(seed: int) -> npt.NDArray[np.uint8]:
    """Dark stripes on the left, bright dots on the right, with some noise."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 40, (*SIZE_HW, 3))
    image[::4, LEFT] += 60
    image[::3, 42::3] += 200
    return image.astype(np.uint8)


def halves(left: int, right: int) -> npt.NDArray[np.uint8]:
    mask = np.full(SIZE_HW, left, np.uint8)
    mask[:, RIGHT] = right
    return mask


def make_folder(root: Path, groups: int = 3, per_group: int = 2) -> Path:
    """Index masks: class 0 on the left, 1 on the right; a folder inside per group."""
    for group in range(groups):
        for number in range(per_group):
            name = f"g{group}/{number}"
            save(root / "images" / f"{name}.png", picture(10 * group + number))
            save(root / "masks" / f"{name}.png", halves(0, 1))
    (root / "classes.json").write_text(
        json.dumps(["background", {"id": 1, "name": "dots", "supercategory": "ink"}])
    )
    return root


def make_cityscapes(root: Path) -> Path:
    """Two training cities and one for validation: road (7) on the left, car (26) on the right, one row ignored."""
    mask = halves(7, 26)
    mask[0] = 3
    for split, city, number in (("train", "aachen", 0), ("train", "bochum", 1), ("val", "munster", 2)):
        name = f"{city}/{city}_000000_00000{number}"
        save(root / "leftImg8bit" / split / f"{name}_leftImg8bit.png", picture(number))
        save(root / "gtFine" / split / f"{name}_gtFine_labelIds.png", mask)
    return root


def make_ade20k(root: Path) -> Path:
    """wall (1) on the left, unlabeled (0) on the right for training; tree (5) for validation."""
    for split, name, right in (("training", "ADE_train_00000001", 0), ("validation", "ADE_val_00000001", 5)):
        save(root / "images" / split / f"{name}.jpg", picture(0))
        save(root / "annotations" / split / f"{name}.png", halves(1, right))
    rows = [f"{n}\t0.1\t10\t1\tname {n}, other" for n in range(1, 151)]
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + "\n".join(rows) + "\n")
    return root


def make_fair1m(root: Path) -> Path:
    """A square on its corner around (30, 30), a Boeing737, and a small car inside it."""
    base = root / "train" / "part1"
    save(base / "images" / "0.tif", picture(0))
    objects = [
        ("Boeing737", [(30, 10), (50, 30), (30, 50), (10, 30), (30, 10)]),
        ("Small Car", [(28, 28), (32, 28), (32, 32), (28, 32), (28, 28)]),
    ]
    entries = "".join(
        "<object><coordinate>pixel</coordinate><type>rectangle</type><description>None</description>"
        f"<possibleresult><name>{name}</name></possibleresult><points>"
        + "".join(f"<point>{x:.6f},{y:.6f}</point>" for x, y in points)
        + "</points></object>"
        for name, points in objects
    )
    (base / "labelXml").mkdir()
    (base / "labelXml" / "0.xml").write_text(
        "<annotation><source><filename>0.tif</filename><origin>GF2/GF3</origin></source>"
        f"<size><width>84</width><height>56</height><depth>3</depth></size><objects>{entries}</objects></annotation>"
    )
    return root


def make_coco(root: Path, images: int = 2) -> Path:
    """A cat (polygon) left, a dog (box) right, a run-length bird in the corner of the first image."""
    annotations = []
    for number in range(images):
        save(root / "images" / f"{number}.jpg", picture(number))
        cat = [[7, 7, 35, 7, 35, 49, 7, 49]]
        annotations.append({"id": 2 * number, "image_id": number, "category_id": 17, "segmentation": cat})
        annotations.append({"id": 2 * number + 1, "image_id": number, "category_id": 18, "bbox": [49, 7, 28, 42]})
    bird = {"size": list(SIZE_HW), "counts": [0, 3, 53, 3, 56 * 82 + 53]}
    annotations.append({"id": 99, "image_id": 0, "category_id": 16, "segmentation": bird})
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 56, "width": 84} for n in range(images)],
        "annotations": annotations,
        "categories": [
            {"id": 16, "name": "bird", "supercategory": "animal"},
            {"id": 17, "name": "cat", "supercategory": "animal"},
            {"id": 18, "name": "dog", "supercategory": "animal"},
        ],
    }
    (root / "set.json").write_text(json.dumps(content))
    return root
