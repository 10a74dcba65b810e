from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import run_pipeline
from pipeline.images.match_images import default_facet

# Places marked by hand, (x, y) in pixels: the cat's, then the ibex's.
MARKED = {
    "left ear": ((438, 113), (414, 203)),
    "right ear": ((512, 100), (498, 194)),
    "left eye": ((460, 137), (440, 244)),
    "right eye": ((495, 132), (488, 236)),
    "nose": ((479, 152), (474, 283)),
}
# The distance between the ears, of either animal.
EARS_PX = (75.0, 84.0)


def test_eyes_go_to_eyes_and_ears_to_ears(shared_dir: Path, tmp_path: Path) -> None:
    images = [str(shared_dir / "data" / "pairs" / name) for name in ("cat.jpg", "ibex.jpg")]
    assert run_pipeline.main(["match", *images, "--output", str(tmp_path), "--device", "cpu"]) == 0
    matches = json.loads((tmp_path / "matches.json").read_text())["matches"]
    assert len(matches) == 10
    met = set()
    for match in matches:
        for part, (a, b) in MARKED.items():
            aside = (np.array(match["a_xy"]) - a) / EARS_PX[0], (np.array(match["b_xy"]) - b) / EARS_PX[1]
            if np.linalg.norm(aside[0]) < 0.25:
                assert np.linalg.norm(aside[1] - aside[0]) < 0.4, f"{part} of the cat met {match['b_xy']}"
                met.add(part)
    assert {"left ear", "right ear", "left eye"} <= met


@pytest.mark.parametrize("more", [[], ["--point", "3,4"], ["--saliency", "none"]])
def test_images_that_show_nothing_come_through(tmp_path: Path, more: list[str]) -> None:
    image = tmp_path / "gray.png"
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(image)
    small = ["--short-side", "56", "--stride", "14", "--device", "cpu", "--output", str(tmp_path / "out")]
    assert run_pipeline.main(["match", str(image), str(image), *small, *more]) == 0
    matches = json.loads((tmp_path / "out" / "matches.json").read_text())["matches"]
    assert len(matches) == 1 if "--point" in more else len(matches) <= 10
    assert np.isfinite([[*m["a_xy"], *m["b_xy"], m["score"]] for m in matches]).all()


def test_the_descriptors_depend_on_the_backbone_and_on_lift() -> None:
    assert default_facet("dino_vits8", "none") == "key@9"
    assert default_facet("dinov2_vitb14", "none") == "token@-3"
    assert default_facet("dinov2_vits14", "auto") == "key@-1"
