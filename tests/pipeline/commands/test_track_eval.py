from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import run_pipeline
from pipeline.core.errors import LabelFileError
from pipeline.evaluation.box_sequences import TRACKING_CONFIG, load_sequences
from pipeline.formats.bdd import read_videos
from pipeline.formats.mot import read_table
from stages.track import TrackConfig

SIZE = (64, 96)
COUNT = 8
TINY = ["--set", "extract.short_side=48", "--set", "extract.backbone=vit_tiny_patch16_224"]
TINY += ["--set", "extract.weights=random", "--set", "extract.facets=[key@3]", "--set", "extract.saliency=none"]


def place(identity: int, frame: int) -> tuple[int, int]:
    return (6 + 4 * frame, 8) if identity == 1 else (60 - 4 * frame, 34)


@pytest.fixture
def mot(tmp_path: Path) -> Path:
    """A MOT folder with one sequence: two squares of 24 px that pass each other, and a false alarm."""
    folder = tmp_path / "data" / "squares"
    for name in ("img1", "gt", "det", "masks"):
        (folder / name).mkdir(parents=True)
    truth, found = [], []
    for frame in range(COUNT):
        image, mask = np.full((*SIZE, 3), 90, np.uint8), np.zeros(SIZE, np.uint8)
        for identity, color in ((1, (220, 40, 40)), (2, (40, 60, 230))):
            left, top = place(identity, frame)
            image[top : top + 24, left : left + 24] = color
            mask[top : top + 24, left : left + 24] = identity
            truth.append(f"{frame + 1},{identity},{left + 1},{top + 1},24,24,1,{identity},1.0")
            found.append(f"{frame + 1},-1,{left + 1},{top + 1},24,24,0.9,-1,-1,-1")
        Image.fromarray(image).save(folder / "img1" / f"{frame + 1:06d}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{frame + 1:06d}.png")
    found.append("3,-1,2,50,10,10,0.3,-1,-1,-1")
    (folder / "gt" / "gt.txt").write_text("\n".join(truth) + "\n")
    (folder / "det" / "det.txt").write_text("\n".join(found) + "\n")
    (folder / "seqinfo.ini").write_text(
        "[Sequence]\nname=squares\nimDir=img1\nframeRate=10\nseqLength=8\nimWidth=96\nimHeight=64\nimExt=.png\n"
    )
    return folder.parent


@pytest.fixture
def bdd(mot: Path) -> Path:
    """The same as BDD100K labels, beside the images."""
    frames = []
    for frame in range(COUNT):
        labels = []
        for identity, category in ((1, "car"), (2, "pedestrian")):
            left, top = place(identity, frame)
            box = {"x1": left, "y1": top, "x2": left + 23, "y2": top + 23}
            labels.append({"id": f"a-{identity}", "category": category, "box2d": box})
        name = f"squares-{frame + 1:07d}.jpg"
        frames.append({"name": name, "videoName": "squares", "frameIndex": frame, "labels": labels})
    folder = mot / "labels" / "box_track_20" / "val"
    folder.mkdir(parents=True)
    (folder / "squares.json").write_text(json.dumps(frames))
    return mot


def evaluate(root: Path, output: Path, *more: object) -> int:
    arguments = ["track-eval", "--root", root, "--output", output, *TINY, *more]
    return run_pipeline.main([str(argument) for argument in arguments])


def test_results_scores_and_timeline_are_written(mot: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert evaluate(mot, output) == 0
    scores = json.loads((output / "scores.json").read_text())
    assert scores["COMBINED"]["IDF1"] == pytest.approx(100)
    assert scores["COMBINED"]["IDSW"] == 0
    table = read_table(output / "results" / "squares.txt", kind="results", num_frames=COUNT)
    assert sorted(set(table.ids.tolist())) == [1, 2]
    assert (output / "timeline_squares.png").stat().st_size > 1000
    assert "timeline_squares.png" in (output / "index.html").read_text()


def test_every_second_frame_keeps_the_frame_numbers_and_is_scored_on_those(mot: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert evaluate(mot, output, "--every", 2, "--detections", "gt") == 0
    table = read_table(output / "results" / "squares.txt", kind="results")
    assert sorted(set(table.frames.tolist())) == [0, 2, 4, 6]
    scores = json.loads((output / "scores.json").read_text())["COMBINED"]
    assert (scores["FN"], scores["FP"], scores["IDSW"]) == (0, 0, 0)


def test_bdd_results_read_back_and_score(bdd: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert evaluate(bdd, output, "--format", "bdd", "--detections", "gt") == 0
    video = read_videos(output / "results" / "squares.json")["squares"]
    assert video.num_frames == COUNT
    assert set(video.table.categories) == {"car", "pedestrian"}
    scores = json.loads((output / "scores.json").read_text())
    assert (scores["official"]["OVERALL"]["FN"], scores["official"]["OVERALL"]["IDSw"]) == (0, 0)
    assert scores["sequences"] == {"squares": scores["trackeval"]["COMBINED"]}
    assert "timeline_squares.png" in (output / "index.html").read_text()


def test_detections_can_come_from_a_folder_of_files(mot: Path, tmp_path: Path) -> None:
    folder = tmp_path / "boxes"
    folder.mkdir()
    (folder / "squares.txt").write_text((mot / "squares" / "det" / "det.txt").read_text())
    assert evaluate(mot, tmp_path / "out", "--detections", folder) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param("99,-1,1,1,5,5,0.9,-1,-1,-1", "frame 99", id="beyond the video"),
        pytest.param("1,-1,1,1,five,5,0.9", "det.txt:18", id="bad line"),
    ],
)
def test_bad_detections_end_before_anything_is_written(
    mot: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    path = mot / "squares" / "det" / "det.txt"
    path.write_text(path.read_text() + line + "\n")
    assert evaluate(mot, tmp_path / "out") == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_sequence_without_seqinfo_goes_on_with_a_warning(
    mot: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (mot / "squares" / "seqinfo.ini").unlink()
    assert evaluate(mot, tmp_path / "out") == 0
    assert "no seqinfo.ini" in capfd.readouterr().err


def test_a_sequence_without_truth_is_tracked_and_not_scored(
    mot: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (mot / "squares" / "gt" / "gt.txt").unlink()
    assert evaluate(mot, tmp_path / "out") == 0
    assert "no ground truth" in capfd.readouterr().err
    assert (tmp_path / "out" / "results" / "squares.txt").exists()
    assert not (tmp_path / "out" / "scores.json").exists()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        pytest.param(
            lambda root: root / "squares" / "img1", "not a MOT sequence|no MOT sequence", id="no sequence"
        ),
        pytest.param(lambda root: root / "nowhere", "is not a folder", id="not a folder"),
    ],
)
def test_a_root_without_sequences_is_named(
    mot: Path,
    tmp_path: Path,
    break_it: Callable[[Path], Path],
    message: str,
) -> None:
    with pytest.raises(LabelFileError, match=message):
        load_sequences("mot", break_it(mot))


def test_bdd_labels_or_images_that_are_missing_are_named(bdd: Path) -> None:
    with pytest.raises(LabelFileError, match="no video other"):
        load_sequences("bdd", bdd, names=["other"])
    (bdd / "squares").rename(bdd / "moved")
    with pytest.raises(LabelFileError, match="no images of 'squares'"):
        load_sequences("bdd", bdd)
    with pytest.raises(LabelFileError, match="no BDD100K labels"):
        load_sequences("bdd", bdd / "moved")


def test_retrieval_writes_curves_for_every_kind_of_features(mot: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["retrieval", "--root", mot, "--output", output, "--gaps", "1,3,7", "--bins", "1,3", *TINY]
    arguments += ["--weighting", "none,mask", "--masks", mot]
    assert run_pipeline.main([str(argument) for argument in arguments]) == 0
    with (output / "retrieval.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = ["key@3 1x1", "key@3 1x1, by mask", "key@3 3x3", "key@3 3x3, by mask"]
    assert sorted({row["features"] for row in rows}) == names
    assert {row["gap_seconds"] for row in rows} == {"0.1000", "0.3000", "0.7000"}
    # Red and blue squares on gray: even random features tell them apart over one frame.
    assert all(float(row["instance"]) == 1.0 for row in rows if row["gap_frames"] == "1")
    curves = json.loads((output / "retrieval.json").read_text())["curves"]
    assert curves["key@3 1x1"]["7"]["queries"] == 2
    assert (output / "retrieval.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("more", "message"),
    [
        pytest.param(["--gaps", "0,5"], "--gaps", id="gap 0"),
        pytest.param(["--bins", "three"], "--bins", id="no number"),
        pytest.param(["--weighting", "mask"], "--masks", id="mask without masks"),
        pytest.param(["--weighting", "depth"], "saliency", id="unknown weighting"),
    ],
)
def test_wrong_options_are_refused(
    mot: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    arguments = ["retrieval", "--root", str(mot), "--output", str(tmp_path / "out"), *TINY, *more]
    assert run_pipeline.main(arguments) == 2
    assert message in capfd.readouterr().err


def test_tracking_yaml_spells_out_every_association_value() -> None:
    """Its reasons are the reference: a value that is missing there, or stale, would go unexplained."""
    written = yaml.safe_load(TRACKING_CONFIG.read_text())["track"]
    assert written == TrackConfig().model_dump(mode="json", exclude={"enabled"})


def test_bench_roi_times_pooling_and_tracking(tmp_path: Path) -> None:
    output = tmp_path / "roi.json"
    arguments = ["bench", "roi", "--boxes", 5, "--height", 9, "--width", 12, "--channels", 8, "--frames", 3]
    arguments += ["--tracked", 4, "--output", output, *TINY]
    assert run_pipeline.main([str(argument) for argument in arguments]) == 0
    report = json.loads(output.read_text())
    assert set(report["roi_align"]) == {"1x1", "3x3", "7x7"}
    assert report["frame"]["share"] == pytest.approx(
        report["frame"]["track_seconds"] / report["frame"]["extract_seconds"]
    )
