"""``probe``, ``retrieve-patches`` and ``tsne`` on small sets, with random weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import run_pipeline
from tests.pipeline.local.layouts import (
    make_ade20k,
    make_cityscapes,
    make_coco,
    make_fair1m,
    make_folder,
    picture,
    save,
)

SMALL = ["--device", "cpu", "--short-side", "56"]
RANDOM = ["--backbone", "vit_tiny_patch16_224=random"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    code = run_pipeline.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def content(path: Path) -> Any:
    return json.loads(path.read_text())


def is_picture(path: Path) -> bool:
    with Image.open(path) as image:
        return min(image.size) > 200


def test_probe_compares_backbones_tilings_features_and_heads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = make_folder(tmp_path / "set"), tmp_path / "out"
    code, text = run(
        capsys, "probe", root, "-o", out, "--train-groups", "1", "--trials", "2", *SMALL, *RANDOM,
        "--backbone", "deit_tiny_patch16_224=random", "--feature", "token@1", "--feature", "key@0+bilinear",
        "--tiles", "whole,1x2", "--tile-side", "32", "--remove", "0,20", "--heads", "knn,linear_bn",
        "--blur", "2", "--bands", "0.5",
    )  # fmt: skip
    assert code == 0, text
    found = content(out / "probe.json")
    assert [(r["backbone"], r["tiling"]) for r in found["runs"]] == [
        (name, tiling)
        for name in ("vit_tiny_patch16_224", "deit_tiny_patch16_224")
        for tiling in ("whole, 56", "1x2 of 32")
    ]
    assert all(len(r["scores"]) == 2 * 2 * 2 * 3 for r in found["runs"])
    for score in found["runs"][0]["scores"]:
        assert 0 <= score["mean_iou"] <= score["pixel_accuracy"] <= 1
        assert set(score["iou_by_class"]) == {"background", "dots"}
        assert len(score["trials"]) == 2
    assert len(found["runs"][0]["variance"]["token@1"]["sorted"]) == 192
    for name in ("scores.png", "variance.png", "robustness.png"):
        assert is_picture(out / name)
    assert "key@0+bilinear" in text
    assert "blur 2" in text


@pytest.mark.parametrize(("layout", "make"), [("cityscapes", make_cityscapes), ("ade20k", make_ade20k)])
def test_probe_uses_the_splits_of_official_layouts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str, make: Any
) -> None:
    out = tmp_path / "out"
    arguments = ["--format", layout, *SMALL, *RANDOM, "--feature", "token@0", "--heads", "knn", "--per-group", "1"]
    code, text = run(capsys, "probe", make(tmp_path / "set"), "-o", out, *arguments)
    assert code == 0, text
    trial = content(out / "probe.json")["trials"][0]
    assert trial["test_images"] == 1
    assert trial["train_images"] == (2 if layout == "cityscapes" else 1)


def test_retrieval_on_coco_and_what_two_images_are_needed_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    quick = [*SMALL, *RANDOM, "--feature", "token@0", "--shift", "14", "--rotate", "90", "--scale", "2"]
    quick += ["--blur", "", "--noise", "0.1"]
    code, text = run(capsys, "retrieve-patches", make_coco(tmp_path / "coco") / "set.json", "-o", out, *quick)
    assert code == 0, text
    scores = content(out / "retrieval.json")["runs"][0]["scores"]
    assert {s["change"] for s in scores} == {"shift 14", "rotate 90", "scale 2", "noise 0.1"}
    for score in scores:
        assert score["queries"] > 0
        assert score["same_patch"] <= score["category"] <= score["supercategory"] <= 1
    assert is_picture(out / "retrieval_1_vit_tiny_patch16_224.png")
    fair = make_fair1m(tmp_path / "fair")
    code, text = run(capsys, "retrieve-patches", fair, "-o", tmp_path / "o2", "--format", "fair1m", *quick)
    assert (code, "at least two images" in text) == (2, True)


def test_tsne_of_images_and_of_a_labeled_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openTSNE", reason="needs openTSNE (extra tsne)")
    out = tmp_path / "out"
    common = ["--device", "cpu", "--short-side", "128", "--steps", "10", "--interval", "4"]
    common += ["--backbone", "vit_tiny_patch16_224", "--weights", "random"]
    code, text = run(
        capsys, "tsne", make_folder(tmp_path / "set", 2, 1), "--format", "folder", "-o", out, *common,
        "--color", "image,class,layer", "--facet", "token@0", "--facet", "key@1",
    )  # fmt: skip
    assert code == 0, text
    views = {view["features"]: view for view in content(out / "tsne.json")["views"]}
    assert set(views) == {"token@0", "key@1", "all layers"}
    assert set(views["token@0"]["class"]) == {"background", "dots"}
    assert len(views["all layers"]["xy"]) == 2 * len(views["key@1"]["xy"])
    assert set(views["all layers"]["layer"]) == {"token@0", "key@1"}
    assert is_picture(out / "tsne.png")
    page = (out / "tsne.html").read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["probe", "SET", "--heads", "svm"], "choose from knn, linear, linear_bn"),
        (["probe", "SET", "--remove", "-1"], "whole numbers from 0 on"),
        (["probe", "SET", "--train-groups", "1", "--remove", "384"], "features of 384 channels"),
        (["probe", "SET"], "--train-groups"),
        (["probe", "SET", "--train-groups", "1", "--feature", "token@40"], "out of range"),
        (["probe", "SET", "--train-groups", "1", "--feature", "key@3+lift"], "no bundled LiFT"),
        (["probe", "SET", "--train-groups", "1", "--tiles", "3"], "ROWSxCOLUMNS"),
        (["probe", "SET", "--backbone", "resnet"], "does not exist"),
        (["probe", "SET", "--format", "cityscapes"], "not Cityscapes"),
        (["probe", "SET/nothing"], "nothing"),
        (["retrieve-patches", "SET", "--format", "folder", "--scale", "0"], "positive numbers"),
        (["tsne", "SET", "--color", "class"], "--format"),
        (["tsne", "SET", "--color", "taste"], "choose from image, part, class, layer"),
        (["tsne", "SET/images/g0", "--facet", "key"], ""),
    ],
)
def test_bad_input_is_explained_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    root = make_folder(tmp_path / "set")
    given = [argument.replace("SET", str(root)) for argument in arguments]
    if message:
        code, text = run(capsys, *given, "-o", tmp_path / "out", "--device", "cpu")
        assert code == 2
        assert message in " ".join(text.split())
        assert text.count("error:") <= 1
        assert not (tmp_path / "out").exists()
    else:
        save(tmp_path / "out" / "mine.png", picture(0))
        code, text = run(capsys, *given, "-o", tmp_path / "out", "--device", "cpu")
        assert (code, "use --overwrite" in text) == (2, True)
