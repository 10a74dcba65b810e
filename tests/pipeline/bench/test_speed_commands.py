"""The commands behind the speed pages: what they compute from what they measure, on inputs of milliseconds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import run_pipeline
from pipeline.bench import everything, precision, scaling
from pipeline.bench.engines import measure_engines
from pipeline.bench.scaling import Axis, Point
from pipeline.evaluation.track_plots import save_figure
from stages.extract.backbone.backbone import load_backbone


def test_exponents_tell_linear_from_quadratic() -> None:
    linear = [Point(n, 0.01 * n) for n in (1, 10, 100)]
    quadratic = [Point(n, 0.01 * n * n) for n in (1, 10, 100)]
    assert scaling.exponent(linear) == pytest.approx(1)
    assert scaling.exponent(quadratic) == pytest.approx(2)


def test_the_sizes_of_an_axis_are_measured_in_order_and_written(tmp_path: Path) -> None:
    asked: list[int] = []

    def cost(size: int) -> Point:
        asked.append(size)
        return Point(size, 0.5 * size, 100.0)

    axis = Axis("things", "pieces", "nothing", (1, 2, 4), (1, 2), cost, 1.1)
    found = scaling.measure_axes([axis], quick=False)
    assert asked == [1, 2, 4]
    assert scaling.as_json(found)["things"]["exponent"] == pytest.approx(1)  # type: ignore[index]
    assert scaling.scaling_table(found).row_count == 3
    save_figure(scaling.plot(found), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.size[0] > 100
    assert [point.size for point in scaling.measure_axes([axis], quick=True)[0][1]] == [1, 2]


def test_the_mask_of_many_objects_shows_every_one() -> None:
    for count in (1, 5, 100):
        assert set(np.unique(scaling._tiles((280, 490), count))) == set(range(count + 1))


def test_costs_of_objects_and_tracks_are_measured() -> None:
    assert scaling._propagation((4, 6), objects=3, warm=2, frames=1) > 0
    assert scaling._tracks(5, warm=1, frames=1).cpu_seconds > 0


def test_engines_agree_where_they_should_and_missing_ones_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("openvino", "onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    model = load_backbone("vit_tiny_patch16_224", weights="random", position="timm")
    costs = {cost.name: cost for cost in measure_engines(model, torch.randn(1, 3, 32, 48), 1)}
    assert costs["PyTorch fp32"].cosine == pytest.approx(1, abs=1e-4)
    assert costs["OpenVINO f32"].cpu_seconds is None
    assert costs["OpenVINO f32"].note == "not installed: openvino"


def davis(root: Path, frames: int = 4) -> Path:
    """A square that moves over noise."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    for folder in ("JPEGImages", "Annotations"):
        (root / folder / "480p" / "square").mkdir(parents=True)
    for index in range(frames):
        image, mask = noise.copy(), np.zeros((64, 96), np.uint8)
        place = np.s_[16:48, 16 + 4 * index : 48 + 4 * index]
        image[place], mask[place] = (220, 40, 40), 255
        Image.fromarray(image).save(root / "JPEGImages" / "480p" / "square" / f"{index:05d}.jpg")
        Image.fromarray(mask).save(root / "Annotations" / "480p" / "square" / f"{index:05d}.png")
    return root


TINY = [
    "--set", "extract.backbone=vit_tiny_patch16_224", "--set", "extract.weights=random",
    "--set", "extract.short_side=64", "--set", "extract.device=cpu",
]  # fmt: skip


def test_precisions_are_compared_and_results_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["bench", "precision", "--root", str(davis(tmp_path / "davis")), "--sequences", "square"]
    command += ["-o", str(tmp_path / "out"), *TINY]
    assert run_pipeline.main(command) == 0
    assert "J&F: bf16 changes the mean by" in capsys.readouterr().out
    first = json.loads((tmp_path / "out" / "precision.json").read_text())
    assert set(first["sequences"]["square"]) == {"fp32", "bf16"}
    assert 0 <= first["means"]["J&F"]["fp32"] <= 100

    def unwanted(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(precision, "stream", unwanted)
    assert run_pipeline.main(command) == 0
    assert json.loads((tmp_path / "out" / "precision.json").read_text()) == first
    with pytest.raises(AssertionError, match="measured again"):
        run_pipeline.main([*command, "--every", "2"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to measure on"),
        (["--root", "x", "--precisions", "fp32,fp8"], "there is no 'fp8'"),
        (["--root", "x"], "not a DAVIS root"),
    ],
)
def test_precision_names_what_is_wrong(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_pipeline.main(["bench", "precision", "-o", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_all_writes_a_page_goes_on_and_says_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = (
        everything.Entry("One", ("one",), ("one", "--few")),
        everything.Entry("Two", ("two", "--root", "{davis}"), ("two", "--root", "{davis}")),
        everything.Entry("Three", ("three",)),
    )
    ran: list[tuple[str, ...]] = []

    def execute(title: str, command: tuple[str, ...]) -> everything.Result:
        ran.append(command)
        return everything.Result(title, command, f"numbers of {title}", 1.0, "2026-01-01", title == "Three")

    monkeypatch.setattr(everything, "ENTRIES", entries)
    monkeypatch.setattr(everything, "_run", execute)
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n{everything.BEGIN} old {everything.END}\nrest\n")
    command = ["bench", "all", "-o", str(tmp_path / "out"), "--page", str(page)]
    assert run_pipeline.main([*command, "--quick"]) == 0
    assert ran == [("bench", "one", "--few")]
    assert "left out, as its folder is not given: Two" in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith("# Title")
    assert text.endswith("rest\n")
    assert "old" not in text
    assert "numbers of One" in text
    assert "python run_pipeline.py bench one --few" in text
    assert run_pipeline.main([*command, "--quick"]) == 0
    assert len(ran) == 1
    assert run_pipeline.main([*command, "--full", "--davis", "d"]) == 1
    assert ran[1:] == [("bench", "one"), ("bench", "two", "--root", "d"), ("bench", "three")]
    assert "these failed" in capsys.readouterr().err


def test_a_page_without_marks_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.md").write_text("no marks")
    command = ["bench", "all", "-o", str(tmp_path / "out"), "--page", str(tmp_path / "page.md")]
    assert run_pipeline.main(command) == 2
    assert "needs the marks" in capsys.readouterr().err


def test_a_command_of_the_page_runs_in_a_process_of_its_own() -> None:
    result = everything._run("Help", ("bench", "runner", "--packets", "50", "--queues", "2"))
    assert not result.failed
    assert "50 packets through 2 queues" in result.output
