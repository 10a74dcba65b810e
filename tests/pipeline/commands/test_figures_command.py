"""``figures`` on small pictures, with random weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

import run_pipeline
from pipeline.local.figures import FIGURES
from tests.pipeline.local.layouts import picture, save

TINY = ["--backbone", "vit_tiny_patch16_224=random", "--device", "cpu", "--layers", "0,11"]


def make_images(root: Path, count: int) -> Path:
    for number in range(count):
        save(root / f"{number}.png", picture(number))
    return root


def test_every_figure_is_on_one_page_that_needs_no_other_file(tmp_path: Path) -> None:
    images, out = make_images(tmp_path / "set", 3), tmp_path / "out"
    small = ["--short-side", "64", "--max-images", "2", "--clusters", "3", "--parts", "2"]
    assert run_pipeline.main(["figures", str(images), "-o", str(out), *TINY, *small]) == 0
    found = json.loads((out / "figures.json").read_text())
    assert found["images"] == ["0", "1"]
    assert [figure["figure"] for figure in found["figures"]] == list(FIGURES)
    for figure in found["figures"]:
        if figure["figure"] in ("lift", "similarity"):
            assert "no LiFT for key@11" in figure["not_drawn"]
            assert not figure["files"]
            continue
        assert figure["files"], figure["figure"]
        for name in figure["files"]:
            with Image.open(out / name) as drawn:
                assert min(drawn.size) > 200
    by_name = {figure["figure"]: figure["numbers"] for figure in found["figures"]}
    assert len(by_name["cka"]["cka"]) == 2 * len(by_name["cka"]["scales_px"])
    assert (
        0
        < by_name["variance"]["token@11"]["share_of_top_10"]
        <= by_name["variance"]["token@11"]["share_of_top_100"]
    )
    assert all(len(ratios) == 2 for ratios in by_name["norms"]["largest_over_median"].values())
    page = (out / "figures.html").read_text()
    assert len(re.findall(r"<section", page)) == len(FIGURES)
    assert len(re.findall(r'src="data:image/', page)) == sum(len(figure["files"]) for figure in found["figures"])
    assert not re.search(r"""(src|href)=["']?(https?:|file:|/)""", page)
    assert set(re.findall(r'href="#([^"]*)"', page)) == set(re.findall(r'<section id="([^"]*)"', page))


def test_lifted_features_are_drawn_where_there_is_a_lift(tmp_path: Path) -> None:
    images, out = make_images(tmp_path / "set", 1), tmp_path / "out"
    arguments = ["--only", "similarity,lift", "--short-side", "56", "--device", "cpu", "--layers", "11"]
    assert run_pipeline.main(["figures", str(images), "-o", str(out), *arguments]) == 0
    found = json.loads((out / "figures.json").read_text())["figures"]
    assert [(f["figure"], f["files"]) for f in found] == [
        ("lift", ["lift_dinov2_vits14.png"]),
        ("similarity", ["similarity_dinov2_vits14.png"]),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "correspondences"], "cannot be drawn: it takes two images"),
        (["--only", "lift"], "no LiFT for key@11 of vit_tiny_patch16_224"),
        (["--only", "poem"], "no figure 'poem'; choose from pca, kmeans"),
        (["--layers", "40"], "out of range"),
        (["--layers", "some"], "whole numbers"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    images, out = make_images(tmp_path / "set", 1), tmp_path / "out"
    assert run_pipeline.main(["figures", str(images), "-o", str(out), *TINY, *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
