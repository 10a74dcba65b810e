"""``train-lift`` from a folder of images to a file that loads."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import run_pipeline
from stages.extract.backbone.facets import parse_facet
from stages.extract.lift.module import load_lift


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(5):
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    return folder


def _arguments(images: Path, output: Path) -> list[str]:
    line = f"train-lift --images {images} --weights random --facet key --layer 0 --size 112 --epochs 2 --views 2"
    return [*line.split(), "--batch-size", "2", "--held-out", "1", "--device", "cpu", "--output", str(output)]


def test_the_command_writes_a_lift_that_says_what_it_is_for_and_ends_the_same_when_run_again(
    images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out" / "lift.safetensors"
    assert run_pipeline.main(_arguments(images, output)) == 0
    lift = load_lift(output)
    lift.require_match(backbone="dinov2_vits14", facet=parse_facet("key@0"), num_layers=12, patch_px=14)
    assert lift.metadata.training["train_images"] == 4
    log = json.loads(output.with_suffix(".log.json").read_text())
    assert len(log["history"]["losses"]) == 2 * (4 * 2 // 2)
    assert output.with_suffix(".curve.png").read_bytes().startswith(b"\x89PNG")
    assert run_pipeline.main(_arguments(images, output)) == 0
    again = load_lift(output)
    assert again.metadata == lift.metadata
    torch.testing.assert_close(again.module.state_dict(), lift.module.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--size", "120"], "nearest: 112"),
        (["--size", "56"], "at least 112"),
        (["--output", "lift.pth"], "must end in .safetensors"),
        (["--held-out", "5"], "too few for 5 validation images"),
    ],
)
def test_bad_options_end_with_2_and_what_to_do(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], message: str
) -> None:
    assert run_pipeline.main([*_arguments(images, tmp_path / "lift.safetensors"), *changes]) == 2
    assert message in capsys.readouterr().err
