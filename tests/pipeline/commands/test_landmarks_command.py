"""``landmarks`` on made sets in the official layouts: colored faces whose keypoints are fixed on them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import run_pipeline
from stages.extract.backbone.backbone import load_backbone

COLORS = ((250, 40, 40), (40, 250, 40), (40, 60, 250))
EYES = np.array([[20.0, 18.0], [44.0, 18.0], [32.0, 34.0], [22.0, 50.0], [42.0, 50.0]])


@pytest.fixture(autouse=True)
def _tiny_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(name: str, **options: Any) -> Any:
        return load_backbone(name, **{**options, "overrides": {"depth": 1}})

    monkeypatch.setattr("stages.extract.stage.load_backbone", short)


def make_face(rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """A gray image with three colored bands of 64 px width, moved at random, and five points on them."""
    image = np.full((128, 128, 3), 120, np.uint8) + rng.integers(0, 8, (128, 128, 3), dtype=np.uint8)
    left, top = (16 * rng.integers(0, 5, 2)).tolist()
    for band, color in enumerate(COLORS):
        image[top + 16 * band : top + 16 * band + 16, left : left + 64] = color
    return image, EYES + np.array([left, top])


def save(path: Path, image: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def write_celeba(root: Path, count: int = 18) -> Path:
    rng = np.random.default_rng(0)
    lines, partition = [str(count), "lefteye_x lefteye_y ..."], []
    for number in range(1, count + 1):
        image, points = make_face(rng)
        name = f"{number:06d}.png"
        save(root / "Img" / "img_celeba" / name, image)
        lines.append(f"{name} " + " ".join(f"{value:.0f}" for value in points.ravel()))
        partition.append(f"{name} {2 if number % 3 == 0 else 0}")
    for place, text in (("Anno/list_landmarks_celeba.txt", lines), ("Eval/list_eval_partition.txt", partition)):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text("\n".join(text) + "\n")
    return root


def write_cub(root: Path, count: int = 12) -> Path:
    rng = np.random.default_rng(0)
    texts: dict[str, list[str]] = {
        name: []
        for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes", "parts/part_locs")
    }
    for number in range(1, 2 * count + 1):
        image, points = make_face(rng)
        bird = 1 + (number > count)
        name = f"{bird:03d}.Bird/b_{number}.png"
        save(root / "images" / name, image)
        texts["images"].append(f"{number} {name}")
        texts["image_class_labels"].append(f"{number} {bird}")
        texts["train_test_split"].append(f"{number} {int(number % 3 != 0)}")
        left, top = points[0] - EYES[0]
        texts["bounding_boxes"].append(f"{number} {left} {top} 64.0 48.0")
        for part, (x, y) in enumerate(points[:3], 1):
            seen = not (part == 3 and number % 4 == 0)
            texts["parts/part_locs"].append(f"{number} {part} {x if seen else 0} {y if seen else 0} {int(seen)}")
    texts["parts/parts"] = ["1 back", "2 left eye", "3 tail"]
    (root / "parts").mkdir()
    for name, lines in texts.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def run(root: Path, output: Path, *more: str) -> int:
    fixed = ["--backbone", "vit_tiny_patch16_224", "--weights", "random", "--facet", "token@-1", "--device", "cpu"]
    # Every cell is foreground; the gray around the face becomes a part of its own.
    parts = ["--method", "vote", "--saliency-threshold", "-1", "--sample-interval", "1", "--short-side", "128"]
    return run_pipeline.main(
        ["landmarks", "--root", str(root), "-o", str(output), *fixed, *parts, "--no-crf", *more]
    )


def test_keypoints_of_celeba_follow_the_parts(tmp_path: Path) -> None:
    root = write_celeba(tmp_path / "celeba")
    assert run(root, tmp_path / "out", "--parts", "4,8", "--fit-images", "8") == 0
    rows = json.loads((tmp_path / "out" / "landmarks.json").read_text())
    assert [row["parts"] for row in rows] == [4, 8]
    assert all(row["test_images"] == 6 for row in rows)
    assert all(row["error_of_mean_points_percent"] > 50 for row in rows)  # faces move by up to 64 px, eyes are 24
    assert rows[0]["error_percent"] < 10
    assert set(rows[0]["error_percent_by_point"]) >= {"left eye", "nose"}
    assert (tmp_path / "out" / "landmarks.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "vit_tiny_patch16_224_CelebA_4.png").exists()
    assert run(root, tmp_path / "out") == 2


def test_cub_is_measured_class_by_class_on_visible_points(tmp_path: Path) -> None:
    root = write_cub(tmp_path / "cub")
    assert run(root, tmp_path / "out", "--dataset", "cub", "--classes", "1,2", "--parts", "4") == 0
    rows = json.loads((tmp_path / "out" / "landmarks.json").read_text())
    assert [(row["set"], row["test_images"]) for row in rows] == [("CUB-001", 4), ("CUB-002", 4)]
    assert all(row["error_percent"] < row["error_of_mean_points_percent"] / 2 for row in rows)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "Anno/list_landmarks_celeba.txt",
            "1\nnames\n000001.png 1 2 3\n",
            "celeba.txt:3: has 4 words instead of 11",
        ),
        ("Anno/list_landmarks_celeba.txt", "1\nnames\na 1 2 3 4 5 6 7 8 9 x\n", "celeba.txt:3: .* numbers"),
        ("Anno/list_landmarks_celeba.txt", "1\nnames\na 1 2 3 4 5 6 7 8 9 nan\n", "celeba.txt:3: .* not finite"),
        ("Eval/list_eval_partition.txt", "000001.png 0\n", "CelebA has 1 images for training and 0 for testing"),
        ("Eval/list_eval_partition.txt", None, "list_eval_partition.txt is missing"),
    ],
)
def test_bad_files_end_with_2_and_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, text: str | None, message: str
) -> None:
    root = write_celeba(tmp_path / "celeba", 4)
    if text is None:
        (root / file).unlink()
    else:
        (root / file).write_text(text)
    assert run(root, tmp_path / "out") == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
