"""The features command on a short clip with a random backbone."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import run_pipeline

TINY = [
    *("--set", "extract.backbone=vit_tiny_patch16_224"),
    *("--set", "extract.weights=random"),
    *("--set", "extract.short_side=64"),
    *("--set", "extract.device=cpu"),
]


def run(clip: Path, output: Path, *arguments: str) -> int:
    return run_pipeline.main(["features", str(clip), "--output", str(output), "--end", "0.2", *TINY, *arguments])


def frames_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--view", "pca"],
        ["--view", "saliency"],
        ["--view", "norm"],
        ["--view", "parts"],
        ["--view", "similarity", "--point", "640,360"],
    ],
    ids=lambda arguments: arguments[1],
)
def test_a_view_is_a_video_as_long_as_the_input(clip: Path, tmp_path: Path, arguments: list[str]) -> None:
    assert run(clip, tmp_path, *arguments) == 0
    (video,) = (tmp_path / clip.stem).iterdir()
    assert video.name == f"{arguments[1]}.mp4"
    assert frames_of(video) == 5


def test_a_sheet_shows_pictures_of_the_view_side_by_side(clip: Path, tmp_path: Path) -> None:
    assert run(clip, tmp_path, "--view", "norm", "--sheet", "2") == 0
    with Image.open(tmp_path / clip.stem / "norm.jpg") as image:
        assert image.size == (2 * 640, 360)
        sheet = np.asarray(image).astype(int)
    with av.open(str(tmp_path / clip.stem / "norm.mp4")) as container:
        frames = [frame.to_image().resize((640, 360)) for frame in container.decode(video=0)]
    for place, frame in enumerate((frames[0], frames[-1])):
        assert np.abs(sheet[:, 640 * place : 640 * (place + 1)] - np.asarray(frame)).mean() < 8
    assert run(clip, tmp_path / "other", "--save", "npz", "--sheet", "2") == 2


def test_an_export_holds_every_frame_and_facet(clip: Path, tmp_path: Path) -> None:
    code = run(clip, tmp_path, "--save", "npz", "--facet", "key@11", "--facet", "token@5:norm", "--every", "2")
    assert code == 0
    found = np.load(tmp_path / clip.stem / "features.npz")
    assert found["data"].shape == (3, 192, 4, 7)
    assert found["token@5:norm"].shape == (3, 192, 4, 7)
    assert found["data"].dtype == np.float16
    assert found["frame_index"].tolist() == [0, 2, 4]
    assert found["image_hw"].tolist() == [720, 1280]
    assert json.loads(str(found["facts"]))["facets"] == ["key@11", "token@5:norm"]


def test_a_view_and_an_export_come_from_one_run(clip: Path, tmp_path: Path) -> None:
    assert run(clip, tmp_path, "--view", "saliency", "--save", "zarr") == 0
    assert {path.name for path in (tmp_path / clip.stem).iterdir()} == {"saliency.mp4", "features.zarr"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to do"),
        (["--view", "similarity"], "--point X,Y"),
        (["--view", "similarity", "--point", "5"], "--point X,Y"),
        (["--view", "similarity", "--point", "1280,5"], "x from 0 to 1279"),
        (["--view", "pca", "--facet", "keys@1"], "query, key, value, token"),
        (["--view", "pca", "--facet", "key@12"], "0 to 11"),
        (["--view", "pca", "--set", "extract.stride_px=5"], r"[1, 2, 4, 8, 16]"),
        (["--view", "pca", "--set", "extract.short_side=8"], "at least 16"),
        (["--view", "saliency", "--set", "extract.saliency=none"], "extract.saliency is none"),
    ],
)
def test_bad_requests_are_one_line_with_what_is_valid(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(clip, tmp_path, *arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not list(tmp_path.rglob("*.*"))


def test_earlier_files_are_kept_unless_asked(clip: Path, tmp_path: Path) -> None:
    assert run(clip, tmp_path, "--view", "saliency") == 0
    assert run(clip, tmp_path, "--view", "saliency") == 2
    assert run(clip, tmp_path, "--view", "saliency", "--overwrite") == 0
