from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import run_pipeline
from pipeline.core.arrays import box_iou
from stages.cosegment.objectness import load_objectness

FRAMES = {"dog": 20, "cows": 50, "car-shadow": 10, "blackswan": 30, "motocross-jump": 30, "soapbox": 30}


def true_box(mask: Path) -> list[int]:
    with Image.open(mask) as image:
        truth = np.asarray(image) > 0
    rows, columns = np.flatnonzero(truth.any(axis=1)), np.flatnonzero(truth.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def test_boxes_on_real_frames_hold_the_object_and_not_the_whole_picture(shared_dir: Path, tmp_path: Path) -> None:
    """The affinities of DINOv2 are one piece at TokenCut's threshold, and every box was the whole picture."""
    davis = shared_dir / "data" / "davis"
    frames, truths = tmp_path / "frames", []
    frames.mkdir()
    for sequence, number in FRAMES.items():
        source = davis / "JPEGImages" / "480p" / sequence / f"{number:05d}.jpg"
        (frames / f"{sequence}.jpg").write_bytes(source.read_bytes())
        truths.append(true_box(davis / "Annotations" / "480p" / sequence / f"{number:05d}.png"))
    output = tmp_path / "out"
    images = [str(frames / f"{sequence}.jpg") for sequence in FRAMES]
    options = ["--output", str(output), "--device", "cpu", "--short-side", "280"]
    assert run_pipeline.main(["discover", *images, *options]) == 0
    boxes = np.array([entry["xyxy"] for entry in json.loads((output / "boxes.json").read_text())["boxes"]])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) / (480 * 854)
    assert areas.max() < 0.7
    overlap = np.diag(box_iou(boxes, truths))
    assert (overlap >= 0.5).sum() >= 5, dict(zip(FRAMES, overlap.round(2).tolist(), strict=True))


@pytest.mark.parametrize("method", ["tokencut", "objectness", "discriminant"])
def test_a_picture_without_an_object_gives_its_whole_frame(method: str, tmp_path: Path) -> None:
    Image.fromarray(np.full((56, 84, 3), 90, np.uint8)).save(tmp_path / "plain.png")
    arguments = ["discover", str(tmp_path / "plain.png"), "--output", str(tmp_path / "out"), "--short-side", "56"]
    assert run_pipeline.main([*arguments, "--device", "cpu", "--weights", "random", "--method", method]) == 0
    (entry,) = json.loads((tmp_path / "out" / "boxes.json").read_text())["boxes"]
    left, top, right, bottom = entry["xyxy"]
    assert 0 <= left < right <= 84
    assert 0 <= top < bottom <= 56


def test_objectness_of_descriptors_that_have_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.full((56, 84, 3), 90, np.uint8)).save(tmp_path / "plain.png")
    arguments = ["discover", str(tmp_path / "plain.png"), "--output", str(tmp_path / "out"), "--short-side", "56"]
    options = ["--weights", "random", "--method", "objectness", "--facet", "token@9", "--device", "cpu"]
    assert run_pipeline.main([*arguments, *options]) == 2
    assert "none is bundled for token@9" in capsys.readouterr().err


def test_objectness_is_learned_from_photographs_by_a_command(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(2):
        Image.fromarray(rng.integers(0, 255, (70, 84, 3), np.uint8)).save(tmp_path / f"{number}.png")
    output = tmp_path / "objectness.safetensors"
    arguments = ["objectness", str(tmp_path), "--output", str(output), "--every", "1", "--short-side", "70"]
    assert run_pipeline.main([*arguments, "--weights", "random", "--device", "cpu"]) == 0
    assert load_objectness(output).weights.shape == (384,)
    assert run_pipeline.main([*arguments[:2], "--output", str(tmp_path / "x.bin")]) == 2


def test_the_bench_counts_boxes_on_frames_of_davis(shared_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "numbers.json"
    arguments = [
        "bench",
        "discovery",
        "--root",
        str(shared_dir / "data" / "davis"),
        "--sequences",
        "dog,car-shadow",
    ]
    assert run_pipeline.main([*arguments, "--every", "30", "--short-side", "224", "--output", str(output)]) == 0
    numbers = json.loads(output.read_text())
    assert [len(values) for values in numbers["iou"].values()] == [2, 2]
    assert numbers["corloc"] >= 0.75
