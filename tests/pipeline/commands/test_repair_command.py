from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import run_pipeline
from pipeline.training.repair import save_backbone
from pipeline.training.repair_data import load_square
from stages.extract.backbone.backbone import load_backbone
from stages.extract.backbone.facets import parse_facet

BACKBONE = "vit_tiny_patch16_224"


@pytest.fixture
def job(planted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The planted model as a weights file, its images as a folder, and an output path."""
    weights, folder = tmp_path / "planted.safetensors", tmp_path / "images"
    save_backbone(planted.backbone, weights, {})
    folder.mkdir()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (planted.backbone.mean, planted.backbone.std))
    for index, image in enumerate(planted.images):
        pixels = ((image * std + mean) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{index}.png")
    monkeypatch.setattr("pipeline.commands.repair.load_backbone", short_model)
    return {"images": folder, "weights": weights, "output": tmp_path / "new" / "repaired.safetensors"}


_load_backbone = load_backbone


def short_model(name: str, **options: Any) -> Any:
    """The planted model has four of ViT-Ti's twelve blocks."""
    return _load_backbone(name, overrides={"depth": 4}, **options)


def repair(job: dict[str, Path], *more: str) -> int:
    arguments = ["repair", "--images", str(job["images"]), "--output", str(job["output"]), "--backbone", BACKBONE]
    fixed = ["--size", "224", "--device", "cpu", "--survey", "4", "--window", "8", "--learning-rate", "0.05"]
    return run_pipeline.main([*arguments, "--weights", str(job["weights"]), *fixed, *more])


def largest_norm(weights: Path, images: torch.Tensor) -> float:
    """Largest token norm over the median, behind the last block, mean over the images."""
    tokens = short_model(BACKBONE, weights=weights)(images, [parse_facet("token@-1")]).maps["token@-1"]
    norms = tokens.norm(dim=1).flatten(1)
    return float((norms.amax(dim=1) / norms.median(dim=1).values).mean())


def test_repair_writes_weights_without_the_planted_defects(
    job: dict[str, Path], planted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert repair(job) == 0
    shown = capsys.readouterr()
    assert "before: detections in 4 images" in shown.out
    assert "after: detections in 4 images" in shown.out
    assert "enough images have no defects" in shown.err
    assert largest_norm(job["output"], planted.images) < largest_norm(job["weights"], planted.images) / 4
    assert [path.name for path in job["output"].parent.iterdir()] == ["repaired.safetensors"]
    with safe_open(job["output"], framework="pt") as file:
        metadata = file.metadata()
    assert metadata["backbone"] == BACKBONE
    assert metadata["made_by"] == "repair"
    assert len(metadata["made_from_sha256"]) == 64


def test_a_model_without_defects_is_said_to_have_none(
    job: dict[str, Path], planted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.no_grad():
        planted.backbone.vit.blocks[1].mlp.fc2.weight[:, 0] = 0
    save_backbone(planted.backbone, job["weights"], {})
    assert repair(job) == 0
    assert "No singular defects found" in capsys.readouterr().out
    assert not job["output"].parent.exists()
    assert repair(job, "--force") == 0
    assert "the weights did not change, no file written" in capsys.readouterr().err
    assert not job["output"].exists()


def test_clamping_lowers_the_norms_without_training(
    job: dict[str, Path], planted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert repair(job, "--clamp", "1.3") == 0
    assert "singular values to 1.3" in capsys.readouterr().out
    assert largest_norm(job["output"], planted.images) < largest_norm(job["weights"], planted.images) / 4


def test_an_interrupted_repair_is_taken_up_again(
    job: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.training.repair import Repairer

    plain, steps = Repairer.step, 0

    def interrupted(self: Repairer, images: torch.Tensor) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt
        return plain(self, images)

    monkeypatch.setattr(Repairer, "step", interrupted)
    assert repair(job) == 130
    unfinished = job["output"].with_name("repaired.safetensors.unfinished")
    assert unfinished.exists()
    assert not job["output"].exists()
    assert repair(job, "--mu", "3.5") == 2
    assert "other weights, images or settings" in capsys.readouterr().err
    assert repair(job) == 0
    assert "after 2 images" in capsys.readouterr().err
    assert not unfinished.exists()


def test_an_unreadable_image_is_named_and_skipped(
    job: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (job["images"] / "broken.jpg").write_bytes(b"no image")
    assert repair(job, "--iterations", "6", "--survey", "5") == 0
    assert "broken.jpg: cannot be read as an image" in capsys.readouterr().err
    for path in job["images"].glob("*.png"):
        path.unlink()
    assert repair(job, "--overwrite") == 2
    assert "none of the 1 images can be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--output", "x.pth"], "name a .safetensors file"),
        (["--images", "/no/such/folder"], "no such folder of images"),
        (["--kernel", "4"], "3 or 5 cells wide, got 4"),
        (["--fit", "guess"], "valid are exact and sampled"),
        (["--size", "32"], "give at least 48"),
        (["--survey", "0"], "--survey must be at least 1"),
        (["--clamp", "-1"], "must be positive"),
        (["--device", "tpu"], "valid: auto, cpu, cuda"),
        (["--learning-rate", "0"], "positive learning rate"),
        (["--backbone", "vit_nonsense"], "vit_nonsense"),
    ],
)
def test_bad_requests_end_with_one_clear_line(
    job: dict[str, Path], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert repair(job, *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_an_existing_file_is_not_written_over(job: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    job["output"].parent.mkdir()
    job["output"].write_bytes(b"mine")
    assert repair(job) == 2
    assert "exists already" in capsys.readouterr().err
    assert job["output"].read_bytes() == b"mine"


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (40, 40), (20, 31)])
def test_images_are_cropped_to_their_central_square(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    columns = np.linspace(0, 200, width)[None, :, None]
    pixels = np.broadcast_to(columns, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    square = load_square(tmp_path / "a.png", 40)
    assert square.shape == (40, 40, 3)
    assert abs(float(square.mean()) - 100) < 3
