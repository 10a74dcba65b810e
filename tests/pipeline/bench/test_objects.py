from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import run_pipeline
from pipeline.formats.palette import write_indexed_png


def make_sequence(folder: Path, *, frames: int = 3) -> None:
    (folder / "img1").mkdir(parents=True)
    for index in range(frames):
        mask = np.zeros((56, 84), np.uint8)
        mask[10:40, 10 + 4 * index : 40 + 4 * index] = 2
        image = np.where(mask[..., None] > 0, np.uint8(220), np.uint8(60)).repeat(3, axis=2)
        Image.fromarray(image).save(folder / "img1" / f"{index + 1:06d}.jpg")
        (folder / "masks").mkdir(exist_ok=True)
        write_indexed_png(folder / "masks" / f"{index + 1:06d}.png", mask)
    (folder / "seqinfo.ini").write_text("[Sequence]\nname=a\nframeRate=24\n")


def test_scores_of_every_sequence_and_of_all_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        make_sequence(tmp_path / "root" / name)
    output = tmp_path / "objects.json"
    tiny = ["backbone=vit_tiny_patch16_224", "weights=random", "short_side=48", "saliency=cls_attention"]
    settings = [part for value in tiny for part in ("--set", f"extract.{value}")]
    command = ["bench", "objects", "--root", str(tmp_path / "root"), "-o", str(output), *settings]
    assert run_pipeline.main(command) == 0
    content = json.loads(output.read_text())
    assert list(content) == ["a", "b", "all"]
    assert content["all"]["true_objects"] == 0  # three frames are too few to count
    assert content["all"]["found_objects"] == content["a"]["found_objects"] + content["b"]["found_objects"]
    assert "objects without labels" in capsys.readouterr().out


def test_a_sequence_without_masks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_sequence(tmp_path / "a")
    (tmp_path / "a" / "masks" / "000002.png").unlink()
    assert run_pipeline.main(["bench", "objects", "--root", str(tmp_path)]) == 2
    assert "000002.png: no such mask" in capsys.readouterr().err
