"""From a labeled set to a detector, its results, their scores and its use by other code; on a tiny backbone."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import run_pipeline
from pipeline.core.arrays import box_iou
from pipeline.core.records import VideoInfo
from pipeline.detect import load_any_detector, load_detector
from pipeline.detect.results import score_results
from pipeline.formats.detections import read_detections
from pipeline.formats.image_folder import load_image
from pipeline.formats.rle import decode_mask
from stages.extract.lift.module import Lift, LiftMetadata, save_lift
from tests.pipeline.detect.squares import BACKBONE, IMAGE_HW, OPTIONS, short_model, write_set
from tests.videos import write_video

SMALL = ["--batch-size", "2", "--box-samples", "16", "--channels", "24", "--box-hidden", "64", "--mask-convs", "1"]
QUICK = ["--epochs", "1", "--no-mirror", "--learning-rate", "1e-3", *SMALL]


@pytest.fixture(autouse=True)
def _tiny_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.detect.feature_maps.load_backbone", short_model)


def train(labels: Path, output: Path, *more: str) -> int:
    command = ["train-detect", "--images", str(labels.parent / "images"), "--annotations", str(labels)]
    return run_pipeline.main([*command, "--output", str(output), "--device", "cpu", *OPTIONS, *more])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A trained detector, and held-out labels."""
    root = tmp_path_factory.mktemp("detect")
    output = root / "out" / "detector.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.detect.feature_maps.load_backbone", short_model)
        assert (
            train(write_set(root / "train", 24), output, "--epochs", "4", "--learning-rate", "5e-3", *SMALL) == 0
        )
    return output, write_set(root / "held_out", 8, seed=1)


def truth_of(labels: Path, image_id: int) -> np.ndarray:
    """True boxes of one image as left, top, right, bottom."""
    entries = [e["bbox"] for e in json.loads(labels.read_text())["annotations"] if e["image_id"] == image_id]
    boxes = np.asarray(entries, np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def test_a_trained_detector_finds_held_out_objects(trained: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, labels = trained
    assert checkpoint.with_suffix(".curve.png").read_bytes().startswith(b"\x89PNG")
    log = json.loads(checkpoint.with_suffix(".log.json").read_text())
    assert len(log["history"]) == log["steps"] == 4 * 24
    assert sum(log["history"][-1].values()) < sum(log["history"][0].values()) / 2
    source = ["--checkpoint", str(checkpoint), "--images", str(labels.parent / "images"), "--weights", "random"]
    arguments = ["detect-eval", "--annotations", str(labels), *source, "--device", "cpu"]
    assert run_pipeline.main([*arguments, "-o", str(tmp_path / "eval")]) == 0
    scores = json.loads((tmp_path / "eval" / "scores.json").read_text())
    assert scores["bbox"]["AP50"] > 0.8
    assert scores["segm"]["AP50"] > 0.8
    assert set(scores["bbox"]["by_category"]) == {"square", "disk"}
    assert (tmp_path / "eval" / "precision.png").read_bytes().startswith(b"\x89PNG")
    again = ["detect-eval", "--annotations", str(labels), "--results", str(tmp_path / "eval" / "results.json")]
    assert run_pipeline.main([*again, "-o", str(tmp_path / "again")]) == 0
    assert json.loads((tmp_path / "again" / "scores.json").read_text()) == scores


def test_results_have_the_ids_of_the_annotations_and_are_read_by_the_tracker(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    checkpoint, labels = trained
    folder, output = labels.parent / "images", tmp_path / "out"
    arguments = ["detect", str(folder), "--checkpoint", str(checkpoint), "--weights", "random", "--device", "cpu"]
    assert run_pipeline.main([*arguments, "--annotations", str(labels), "-o", str(output)]) == 0
    results = json.loads((output / "results.json").read_text())
    assert {entry["image_id"] for entry in results} <= {10 * n for n in range(1, 9)}
    assert {entry["category_id"] for entry in results} == {3, 6}
    mask = decode_mask(results[0]["segmentation"]["counts"], IMAGE_HW)
    left, top, width, height = results[0]["bbox"]
    inside = mask[int(top) : int(top + height) + 1, int(left) : int(left + width) + 1]
    assert inside.sum() == mask.sum() > 0.5 * width * height
    assert sorted(path.name for path in (output / "pictures").iterdir()) == [f"{n}.png" for n in range(1, 9)]
    assert load_image(output / "pictures" / "1.png").shape == (*IMAGE_HW, 3)
    rate = Fraction(25)
    info = VideoInfo(folder, *IMAGE_HW, rate, 8, 1 / rate, frame_names=tuple(str(n) for n in range(1, 9)))
    found = read_detections(output / "coco.json", info)
    assert sum(len(own) for own in found.values()) == len(results)
    assert {name for own in found.values() for name in own.categories} == {"square", "disk"}
    assert run_pipeline.main([*arguments, "-o", str(output)]) == 2


def test_a_video_gives_an_image_per_frame(trained: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, labels = trained
    frames = [load_image(labels.parent / "images" / f"{n}.png") for n in (1, 2, 3)]
    video = write_video(tmp_path / "clip.mp4", frames)
    arguments = ["detect", str(video), "--checkpoint", str(checkpoint), "--weights", "random", "--device", "cpu"]
    assert run_pipeline.main([*arguments, "--no-pictures", "-o", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [entry["file_name"] for entry in content["images"]] == ["00000.jpg", "00001.jpg", "00002.jpg"]
    assert {entry["image_id"] for entry in content["annotations"]} == {1, 2, 3}
    assert not (tmp_path / "out" / "pictures").exists()


def test_the_entry_for_other_code_gives_supervisions_detections(
    trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, labels = trained
    monkeypatch.setattr(
        "pipeline.detect.feature_maps.load_backbone", lambda name, **_: short_model(name, weights="random")
    )
    image = load_image(labels.parent / "images" / "1.png")
    found = load_detector(str(checkpoint))(image)
    sure = found[found.confidence > 0.5]
    assert box_iou(truth_of(labels, 10), sure.xyxy).max(axis=1).min() > 0.6
    assert sure.mask.shape == (len(sure), *IMAGE_HW)
    assert sure.mask.dtype == np.bool_
    assert set(sure.data["class_name"]) <= {"square", "disk"}


def test_run_tracks_what_the_detector_of_a_file_finds(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, labels = trained
    monkeypatch.setattr(
        "pipeline.detect.feature_maps.load_backbone", lambda name, **_: short_model(name, weights="random")
    )
    video = write_video(tmp_path / "clip.mp4", [load_image(labels.parent / "images" / "1.png")] * 3)
    sets = (
        *(f"extract.backbone={BACKBONE}", "extract.weights=random", "extract.short_side=48"),
        *("cosegment.enabled=false", "propagate.enabled=false"),
    )
    options = [part for text in sets for part in ("--set", text)]
    detector = f"pipeline.detect:load_detector:{checkpoint}"
    assert run_pipeline.main(["run", str(video), "-o", str(tmp_path), "--detector", detector, *options]) == 0
    rows = np.loadtxt(tmp_path / "clip" / "tracks.txt", delimiter=",", ndmin=2)
    last = rows[rows[:, 0] == 3]
    boxes = np.concatenate([last[:, 2:4] - 1, last[:, 2:4] - 1 + last[:, 4:6]], axis=1)
    assert box_iou(truth_of(labels, 10), boxes).max(axis=1).min() > 0.6
    record = json.loads((tmp_path / "clip" / "run.json").read_text())
    assert record["identity"]["labels"]["detections"]["argument"]["name"] == checkpoint.name


def test_lift_is_stored_in_the_file_and_doubles_the_map(trained: tuple[Path, Path], tmp_path: Path) -> None:
    labels = trained[1]
    lift = tmp_path / "lift.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Lift(192, patch_px=16, extra_blocks=1)
        torch.nn.init.normal_(dict(module.named_parameters())["extra.0.convs.4.weight"])
    save_lift(module, LiftMetadata(BACKBONE, "token@0", 16), lift)
    output = tmp_path / "lifted.safetensors"
    assert train(labels, output, "--lift", str(lift), *QUICK) == 0
    inserted = load_any_detector(trained[0], lift=lift, backbone_weights="random", device="cpu").detector
    assert inserted.strides == [4, 8, 16, 32]  # the same pyramid on a map of twice the cells
    lift.unlink()
    detector = load_any_detector(output, backbone_weights="random", device="cpu").detector
    assert detector.stride_px == 8
    assert detector.strides == [8, 16, 32, 64]
    inputs = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module.eval().half().float()(inputs, detector.maps(inputs))
    torch.testing.assert_close(detector.feature_maps(inputs), expected, rtol=1e-4, atol=1e-4)


def test_an_unfrozen_backbone_is_trained_and_stored(trained: tuple[Path, Path], tmp_path: Path) -> None:
    labels = trained[1]
    output = tmp_path / "whole.safetensors"
    assert train(labels, output, "--unfreeze", *QUICK) == 0
    stored = load_file(output)
    original = short_model(BACKBONE, weights="random").vit.state_dict()["blocks.0.mlp.fc1.weight"]
    assert not torch.equal(stored["maps.backbone.vit.blocks.0.mlp.fc1.weight"], original)
    detector = load_any_detector(output, backbone_weights="random", device="cpu").detector
    name = "maps.backbone.vit.blocks.0.mlp.fc1.weight"
    assert torch.equal(detector.state_dict()[name], stored[name])
    assert not (tmp_path / "detect_cache").exists()


def test_training_goes_on_from_another_detector(trained: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, labels = trained
    output = tmp_path / "more.safetensors"
    assert train(labels, output, "--start", str(checkpoint), *QUICK) == 0
    history = json.loads(output.with_suffix(".log.json").read_text())["history"]
    assert sum(history[0].values()) < 1.5  # a new one starts above 3


def test_the_true_objects_score_one(trained: tuple[Path, Path]) -> None:
    labels = trained[1]
    entries = [{**entry, "score": 1.0} for entry in json.loads(labels.read_text())["annotations"]]
    scores = score_results(labels, entries)
    assert scores["bbox"]["AP"] == scores["segm"]["AP"] == 1.0
    assert score_results(labels, [])["bbox"]["AP"] == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train-detect --images IMAGES --annotations LABELS -o d.pth", "must end in .safetensors"),
        ("train-detect --images IMAGES --annotations LABELS -o OUT --size 64,100", "nearest: 64,96"),
        ("train-detect --images IMAGES --annotations LABELS -o OUT --size a", "numbers separated by commas"),
        ("train-detect --images IMAGES --annotations LABELS -o OUT --levels 1,3", "twice the one before"),
        ("train-detect --images IMAGES --annotations LABELS -o OUT --lift auto", "no bundled LiFT"),
        ("train-detect --images HERE --annotations LABELS -o OUT", "no such image"),
        ("detect IMAGES --checkpoint LABELS -o OUT", "cannot read the weights"),
        ("detect IMAGES --checkpoint HERE/none.pth -o OUT", "no such weights file"),
        ("detect IMAGES LABELS --checkpoint MODEL -o OUT", "give one video"),
        ("detect-eval --annotations LABELS -o OUT", "either --results or --checkpoint"),
        ("detect-eval --annotations LABELS --results LABELS -o OUT", "COCO results"),
        ("detect-eval --annotations HERE/none.json --results LABELS -o OUT", "COCO results"),
    ],
)
def test_bad_input_ends_with_2_and_what_to_do(
    trained: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    checkpoint, labels = trained
    names = {"IMAGES": labels.parent / "images", "LABELS": labels, "HERE": tmp_path, "MODEL": checkpoint}
    names["OUT"] = tmp_path / "new.safetensors"
    line = [
        next((a.replace(n, str(p)) for n, p in names.items() if a.startswith(n)), a) for a in arguments.split()
    ]
    given = {name for name in line if name.startswith("--")}
    pairs = [pair for pair in zip(OPTIONS[::2], OPTIONS[1::2], strict=True) if pair[0] not in given]
    extra = [word for pair in pairs for word in pair] if line[0] == "train-detect" else []
    assert run_pipeline.main([*line, *extra]) == 2
    assert message in capsys.readouterr().err
    assert not names["OUT"].exists()
