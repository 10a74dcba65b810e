"""The benchmark and report commands on tiny made data: every variant runs, its numbers are of the right kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import run_pipeline
from pipeline.formats.palette import write_indexed_png

VARIANTS = ["raw", "bilinear", "lift", "lift_twice", "half_stride", "double_input"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four frames of a red square that walks over noise, in DAVIS's layout."""
    folder = tmp_path_factory.mktemp("davis")
    pictures, masks = (folder / kind / "480p" / "square" for kind in ("JPEGImages", "Annotations"))
    pictures.mkdir(parents=True)
    masks.mkdir(parents=True)
    ground = np.random.default_rng(0).integers(60, 120, (112, 168, 3), dtype=np.uint8)
    for index in range(4):
        picture, mask = ground.copy(), np.zeros((112, 168), np.uint8)
        place = np.s_[28:84, 14 + 6 * index : 84 + 6 * index]
        picture[place], mask[place] = (220, 40, 40), 1
        Image.fromarray(picture).save(pictures / f"{index:05d}.jpg", quality=95)
        write_indexed_png(masks / f"{index:05d}.png", mask)
    (folder / "ImageSets" / "2016").mkdir(parents=True)
    (folder / "ImageSets" / "2016" / "val.txt").write_text("square\n", encoding="utf-8")
    return folder


def test_bench_lift_compares_grids_that_are_what_they_say(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "lift.json"
    options = [value for name in VARIANTS for value in ("--variant", name)]
    code = run_pipeline.main(["bench", "lift", "--root", str(root), "--size", "112", "-o", str(output), *options])
    assert code == 0
    rows = {row["variant"]: row for row in json.loads(output.read_text())}
    assert list(rows) == VARIANTS
    grids = {name: tuple(row["grid_hw"]) for name, row in rows.items()}
    assert grids == {
        "raw": (8, 12),
        "bilinear": (16, 24),
        "lift": (16, 24),
        "lift_twice": (32, 48),
        "half_stride": (15, 23),
        "double_input": (16, 24),
    }
    assert all(0 <= row["J&F"] <= 100 for row in rows.values())
    assert rows["lift"]["J&F"] > 60
    assert rows["raw"]["gmacs"] < rows["lift"]["gmacs"] < rows["half_stride"]["gmacs"]
    assert rows["bilinear"]["gmacs"] == rows["raw"]["gmacs"]
    assert run_pipeline.main(["bench", "lift", "--root", str(root), "--variant", "sharp"]) == 2


def test_bench_parts_scores_both_modes(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "parts.json"
    code = run_pipeline.main(
        ["bench", "parts", "--root", str(root), "--short-side", "112", "--output", str(output)]
    )
    assert code == 0
    report = json.loads(output.read_text())
    assert set(report) == {"mode=streaming", "mode=two_pass"}
    for by_sequence in report.values():
        assert 0 <= by_sequence["mean"]["J"] <= 1
        assert by_sequence["mean"]["cost"] > 0


def test_lift_report_has_scales_cost_and_pictures(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        blocks = random.integers(0, 256, (14, 14, 3), dtype=np.uint8)
        Image.fromarray(np.kron(blocks, np.ones((16, 16, 1), np.uint8))).save(images / f"{name}.png")
    output = tmp_path / "report"
    arguments = ["lift-report", "--images", str(images), "-o", str(output), "--maps", "1", "--repeats", "0"]
    assert run_pipeline.main(arguments) == 0
    report = json.loads((output / "report.json").read_text())
    assert report["images"] == 2
    assert report["cost"]["parameters"]["lift"] == 1_187_280
    assert len(list(output.glob("self_similarity_*.png"))) == 1


def test_bench_coseg_measures_every_set(root: Path, tmp_path: Path) -> None:
    output, picture = tmp_path / "coseg.json", tmp_path / "coseg.png"
    options = ["--split", "val", "--sequences", "square;square", "--frames", "1", "--short-side", "112"]
    code = run_pipeline.main(
        ["bench", "coseg", "--root", str(root), *options, "-o", str(output), "--picture", str(picture)]
    )
    assert code == 0
    content = json.loads(output.read_text())
    (row,) = content["sets"].values()
    assert content["method"] == "discriminant"
    assert content["mean"]["J_m"] == row["J_m"] == row["square/00002"]
    assert 0.5 < row["P_m"] <= 1.0
    assert picture.is_file()
    assert run_pipeline.main(["bench", "coseg", "--root", str(root), "--picture", str(tmp_path)]) == 2
