from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import run_pipeline
from pipeline.detect.coco_data import read_coco
from pipeline.detect.composites import Cutout, Recipe, make_composites, paste
from pipeline.formats.image_folder import load_image
from pipeline.formats.palette import write_indexed_png
from pipeline.formats.rle import decode_mask

RECIPE = Recipe(
    objects={"red": ("a",), "blue": ("b",)},
    new_objects={"red": ("c",)},
    backgrounds=("a", "b"),
    new_backgrounds=("c",),
)


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    """Three sequences of six gray frames, each with a square of its own color."""
    root = tmp_path / "davis"
    (root / "ImageSets" / "2016").mkdir(parents=True)
    (root / "ImageSets" / "2016" / "dev.txt").write_text("a\nb\nc\n")
    for name, color in (("a", (250, 0, 0)), ("b", (0, 0, 250)), ("c", (250, 0, 0))):
        for kind in ("JPEGImages", "Annotations"):
            (root / kind / "480p" / name).mkdir(parents=True)
        for frame in range(6):
            image, mask = np.full((60, 90, 3), 120, np.uint8), np.zeros((60, 90), np.uint8)
            mask[20:40, 10 + 5 * frame : 30 + 5 * frame] = 1
            image[mask > 0] = color
            Image.fromarray(image).save(root / "JPEGImages" / "480p" / name / f"{frame:05d}.jpg", quality=95)
            write_indexed_png(root / "Annotations" / "480p" / name / f"{frame:05d}.png", mask)
    return root


def test_boxes_and_masks_are_those_of_the_pasted_colors(davis: Path, tmp_path: Path) -> None:
    counts = {"train": 6, "frames": 2, "objects": 2}
    make_composites(davis, tmp_path / "out", counts, recipe=RECIPE)
    for name, count in counts.items():
        data = read_coco(tmp_path / "out" / f"{name}.json", tmp_path / "out" / name)
        assert len(data.images) == count
        assert data.categories == {1: "red", 2: "blue"}
        for image in data.images:
            pixels = load_image(image.path).astype(int)
            assert image.objects
            for item in image.objects:
                mask = decode_mask(item.segmentation["counts"], image.image_hw)
                rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
                extent = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
                assert list(item.xywh) == extent
                own, other = (0, 2) if item.label == 0 else (2, 0)
                assert (
                    pixels[mask][:, own] > pixels[mask][:, other] + 60
                ).mean() > 0.85  # JPEG blurs colors over borders
    labels = [item.label for image in read_coco(tmp_path / "out/objects.json", tmp_path / "out/objects").images
              for item in image.objects]  # fmt: skip
    assert set(labels) == {0}


def test_what_is_pasted_later_hides_what_is_behind_it() -> None:
    whole = Cutout(np.full((30, 30, 3), 200, np.uint8), np.ones((30, 30), np.bool_), 1)
    picture = np.zeros((40, 60, 3), np.uint8)
    for seed in range(20):
        _, found = paste(picture, [whole] * 4, (0.3, 0.6), np.random.default_rng(seed))
        assert np.sum([mask for mask, _ in found], axis=0).max() == 1
        assert 1 <= len(found) <= 4


def test_the_command_refuses_a_folder_that_is_there(davis: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    assert run_pipeline.main(["bench", "composites", "--root", str(davis), "-o", str(tmp_path / "out")]) == 2
    assert run_pipeline.main(["bench", "composites", "--root", str(davis), "-o", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()  # the sequences of the default recipe are not in this root
