"""``davis`` from a root to scores, resuming, and its errors; a tiny random backbone stands in."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import run_pipeline
from pipeline.core.errors import ConfigError
from pipeline.core.presets import load_preset
from pipeline.formats.palette import write_indexed_png

REPOSITORY = Path(__file__).resolve().parents[3]
PRESETS = REPOSITORY / "configs" / "davis.yaml"
TINY = [
    "extract.backbone=vit_tiny_patch16_224",
    "extract.weights=random",
    "extract.short_side=64",
    "extract.device=cpu",
    "propagate.upsample_factor=16",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("davis"), num_frames=5)


def make_root(folder: Path, *, num_frames: int) -> Path:
    """A DAVIS root with two sequences of a square that moves right."""
    random = np.random.default_rng(0)
    for name in ("ball", "cube"):
        pictures, masks = (folder / kind / "480p" / name for kind in ("JPEGImages", "Annotations"))
        pictures.mkdir(parents=True)
        masks.mkdir(parents=True)
        ground = random.integers(60, 120, (64, 96, 3), dtype=np.uint8)
        for index in range(num_frames):
            picture, mask = ground.copy(), np.zeros((64, 96), np.uint8)
            place = np.s_[16:48, 8 + 4 * index : 48 + 4 * index]
            picture[place], mask[place] = (220, 40, 40), 1
            Image.fromarray(picture).save(pictures / f"{index:05d}.jpg")
            write_indexed_png(masks / f"{index:05d}.png", mask)
    (folder / "ImageSets" / "2017").mkdir(parents=True)
    (folder / "ImageSets" / "2017" / "val.txt").write_text("ball\ncube\n", encoding="utf-8")
    return folder


def run(root: Path, output: Path, *more: str) -> int:
    settings = [part for value in TINY for part in ("--set", value)]
    return run_pipeline.main(["davis", "--root", str(root), "--year", "2017", "-o", str(output), *settings, *more])


def test_a_run_scores_and_goes_on_where_it_stopped(root: Path, tmp_path: Path) -> None:
    assert run(root, tmp_path) == 0
    report = json.loads((tmp_path / "davis.json").read_text(encoding="utf-8"))
    assert set(report["sequences"]) == {"ball", "cube"}
    assert 'href="ball"' in (tmp_path / "index.html").read_text()
    assert set(report["global"]) == {"J", "F", "J&F"}
    assert set(report["global"]["J"]) == {"mean", "recall", "decay"}
    assert report["sequences"]["ball"]["frames"] == 5
    assert report["config"]["propagate"]["upsample_factor"] == 16
    assert report["timing"]["frames"] == 10
    assert "loading the model" in report["timing"]["fps_scope"]
    assert report["timing"]["peak_memory_bytes"] > 0
    assert report["runs"]["ball"]["propagate"]["objects"][0]["frames"] == 5
    assert sorted(path.name for path in (tmp_path / "ball").iterdir()) == [f"{i:05d}.png" for i in range(5)]
    with Image.open(tmp_path / "ball" / "00003.png") as image:
        assert image.mode == "P"
        assert image.size == (96, 64)

    before = (tmp_path / "ball" / "00004.png").stat().st_mtime_ns
    (tmp_path / "cube" / "00002.png").unlink()  # cube is no longer whole
    assert run(root, tmp_path) == 0
    resumed = json.loads((tmp_path / "davis.json").read_text(encoding="utf-8"))
    assert resumed["timing"]["resumed"] == ["ball"]
    assert (tmp_path / "ball" / "00004.png").stat().st_mtime_ns == before
    assert resumed["global"] == report["global"]

    assert run(root, tmp_path, "--set", "propagate.top_k=3") == 2
    assert run(root, tmp_path, "--set", "propagate.top_k=3", "--overwrite") == 0


def test_masks_that_no_run_wrote_are_never_replaced(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ball").mkdir()
    (tmp_path / "ball" / "00000.png").write_bytes(b"an annotation")
    assert run(root, tmp_path, "--overwrite", "--sequences", "ball") == 2
    assert "not written by liftstream" in capfd.readouterr().err
    assert (tmp_path / "ball" / "00000.png").read_bytes() == b"an annotation"


@pytest.mark.parametrize("name", ["..", "../evil", "/tmp/evil", "."])
def test_a_sequence_name_never_leads_out(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    assert run(root, tmp_path / "out", "--overwrite", "--sequences", name) == 2
    assert capfd.readouterr().err.startswith("error: ")
    assert [path.name for path in tmp_path.iterdir() if path.name != "out"] == ["keep.txt"]


def test_a_davis_run_that_is_killed_goes_on_within_the_sequence(root: Path, tmp_path: Path) -> None:
    more = ["--set", "write.segment_frames=1", "--set", "write.checkpoint_frames=1"]
    assert run(root, tmp_path / "whole", *more) == 0
    settings = [part for value in TINY for part in ("--set", value)]
    command = ["davis", "--root", str(root), "--year", "2017", "-o", str(tmp_path / "out"), *settings, *more]
    process = subprocess.Popen(
        [sys.executable, "run_pipeline.py", *command], cwd=REPOSITORY, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    partial = tmp_path / "out" / ".liftstream" / "cube.partial"
    deadline = time.monotonic() + 90
    while (
        process.poll() is None and time.monotonic() < deadline and not (partial / "masks" / "00001.png").exists()
    ):
        time.sleep(0.002)
    process.kill()
    process.wait(30)
    assert run(root, tmp_path / "out", *more) == 0
    for mask in (tmp_path / "whole").glob("*/*.png"):
        other = tmp_path / "out" / mask.relative_to(tmp_path / "whole")
        assert other.read_bytes() == mask.read_bytes()


def test_a_run_that_was_interrupted_goes_on_within_a_sequence_with_the_same_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_root(tmp_path / "root", num_frames=12)
    settings = ("queue_depth=1", "extract.batch_size=1", "write.segment_frames=1", "write.checkpoint_frames=1")
    steady = [part for setting in settings for part in ("--set", setting)]
    assert run(root, tmp_path / "whole", *steady) == 0
    seen: list[str] = []

    def interrupt(self: object, name: str, frames: int) -> None:
        seen.append(name)
        if len(seen) == 10:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.commands.davis._Progress.__call__", interrupt)
        assert run(root, tmp_path / "halted", *steady) != 0
    assert not (tmp_path / "halted" / "ball").exists()
    assert run(root, tmp_path / "halted", *steady) == 0
    report = json.loads((tmp_path / "halted" / "davis.json").read_text(encoding="utf-8"))
    assert report["runs"]["ball"]["resumed_at"] > 0
    for name in ("ball", "cube"):
        for path in sorted((tmp_path / "whole" / name).iterdir()):
            assert path.read_bytes() == (tmp_path / "halted" / name / path.name).read_bytes()


def test_scoring_alone_agrees(root: Path, tmp_path: Path) -> None:
    assert run(root, tmp_path, "--sequences", "ball") == 0
    scores = tmp_path / "scores.json"
    arguments = ["davis-score", "--root", str(root), "--year", "2017", "--sequences", "ball"]
    assert run_pipeline.main([*arguments, "--results", str(tmp_path), "-o", str(scores)]) == 0
    report = json.loads((tmp_path / "davis.json").read_text(encoding="utf-8"))
    assert json.loads(scores.read_text(encoding="utf-8"))["sequences"] == report["sequences"]


def test_bad_input_ends_with_one_line(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, tmp_path / "out") == 2
    assert "not a DAVIS root" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(root, tmp_path / "out", "--preset", "dimo") == 2
    assert "did you mean 'dino'?" in capfd.readouterr().err
    assert run(root, tmp_path / "out", "--set", "propagate.topk=3") == 2
    assert "did you mean 'propagate.top_k'?" in capfd.readouterr().err


def test_every_preset_is_a_valid_config() -> None:
    from pipeline.core.config import load_config, load_yaml
    from pipeline.flow import FlowConfig

    names = list(load_yaml(PRESETS)["presets"])
    assert {"dino", "videowalk", "lift", "dinov3", "dino_stride", "best"} <= set(names)
    configs = {name: load_config(FlowConfig, load_preset(PRESETS, name)) for name in names}
    dino = configs["dino"].propagate
    assert (dino.context_frames, dino.radius_cells, dino.top_k, dino.temperature) == (7, 12, 5, 0.1)
    assert (configs["videowalk"].propagate.window, configs["videowalk"].propagate.keep_ties) == ("disc", False)
    assert configs["dinov3"].propagate.temperature == 0.2
    assert configs["lift"].extract.lift == "auto"


def test_presets_build_on_each_other(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "default: b\ncommon: {x: 1, y: 1}\npresets:\n  a: {about: first, y: 2, z: {k: 1}}\n"
        "  b: {based_on: a, z: {m: 2}}\n  c: {based_on: d}\n  d: {based_on: c}\n",
        encoding="utf-8",
    )
    assert load_preset(path, None) == {"x": 1, "y": 2, "z": {"k": 1, "m": 2}}
    with pytest.raises(ConfigError, match="circle: c -> d -> c"):
        load_preset(path, "c")
    plain = tmp_path / "plain.yaml"
    plain.write_text("queue_depth: 2\n", encoding="utf-8")
    assert load_preset(plain, None) == {"queue_depth": 2}
    with pytest.raises(ConfigError, match="has no presets"):
        load_preset(plain, "dino")
