"""A labeled set that a tiny detector learns in seconds: bright squares and dark disks on noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.formats.rle import encode_mask
from stages.extract.backbone.backbone import load_backbone

BACKBONE = "vit_tiny_patch16_224"
IMAGE_HW = (60, 90)

OPTIONS = ["--backbone", BACKBONE, "--weights", "random", "--facet", "token@-1", "--size", "64,96"]


def short_model(name: str, **options: Any) -> Any:
    """The tiny ViT with one block; in place of ``load_backbone``."""
    return load_backbone(name, **{**options, "overrides": {"depth": 1}})


def make_image(rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], list[tuple[int, npt.NDArray[np.bool_]]]]:
    """An image with one object in each half, and (category, mask) of both."""
    height, width = IMAGE_HW
    image = rng.integers(110, 140, (height, width, 3), dtype=np.uint8)
    found = []
    for half in (0, 1):
        side = int(rng.integers(16, 36))
        top, left = int(rng.integers(0, height - side)), half * 45 + int(rng.integers(0, 45 - side))
        mask = np.zeros(IMAGE_HW, np.uint8)
        category = int(rng.integers(1, 3))
        if category == 1:
            mask[top : top + side, left : left + side] = 1
        else:
            cv2.circle(mask, (left + side // 2, top + side // 2), side // 2, 1, cv2.FILLED)
        image[mask > 0] = (250, 220, 40) if category == 1 else (10, 20, 90)
        found.append((category, mask > 0))
    return image, found


def write_set(folder: Path, count: int, *, seed: int = 0) -> Path:
    """Write ``FOLDER/images/N.png`` and ``FOLDER/labels.json``; returns the JSON file."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        image, found = make_image(rng)
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
        size = {"height": IMAGE_HW[0], "width": IMAGE_HW[1]}
        images.append({"id": 10 * number, "file_name": f"{number}.png", **size})
        for category, mask in found:
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 * number,
                    "category_id": 3 * category,
                    "bbox": box,
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": encode_mask(mask),
                }
            )
    categories = [{"id": 3, "name": "square"}, {"id": 6, "name": "disk"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "labels.json").write_text(json.dumps(content))
    return folder / "labels.json"
