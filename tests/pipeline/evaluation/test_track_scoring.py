from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import LabelFileError
from pipeline.evaluation.track_scoring import score_bdd, score_mot

GT = "1,1,1,1,10,10,1,1,1\n2,1,2,1,10,10,1,1,1\n1,2,101,1,10,10,1,3,1\n"
RESULTS = "1,5,1,1,10,10,1,-1,-1,-1\n2,5,2,1,10,10,1,-1,-1,-1\n1,6,101,1,10,10,1,-1,-1,-1\n"


def _sequence(root: Path, name: str, length: int | None = 2) -> Path:
    folder = root / name
    (folder / "gt").mkdir(parents=True)
    (folder / "gt" / "gt.txt").write_text(GT)
    if length is not None:
        (folder / "seqinfo.ini").write_text(f"[Sequence]\nname={name}\nseqLength={length}\n")
    return folder


def _write(path: Path, text: str = RESULTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("place", ["a.txt", "data/a.txt", "a/tracks.txt"])
def test_results_are_found_where_tools_put_them(tmp_path: Path, place: str) -> None:
    _sequence(tmp_path / "gt", "a")
    _write(tmp_path / "results" / place)
    found = score_mot(tmp_path / "gt", tmp_path / "results")
    assert found.sequences["a"].clear.tp == 3
    assert found.combined.clear.mota == 1


def test_one_file_against_one_file_and_flat_folders(tmp_path: Path) -> None:
    gt = _sequence(tmp_path, "a") / "gt" / "gt.txt"
    results = _write(tmp_path / "any.txt")
    assert list(score_mot(gt, results).sequences) == ["a"]
    flat = _write(tmp_path / "flat" / "b.txt", GT).parent
    assert score_mot(flat, _write(tmp_path / "r" / "b.txt").parent).sequences["b"].clear.tp == 3
    assert list(score_mot(flat / "b.txt", results).sequences) == ["b"]


def test_mot17_is_detected_from_its_name_and_its_results_may_lack_the_detector(tmp_path: Path) -> None:
    for detector in ("DPM", "SDP"):
        _sequence(tmp_path / "gt" / "train", f"MOT17-02-{detector}")
    _write(tmp_path / "r" / "MOT17-02.txt")
    found = score_mot(tmp_path / "gt", tmp_path / "r")
    assert set(found.benchmarks.values()) == {"MOT17"}
    assert found.sequences["MOT17-02-DPM"].clear.fp == 1
    assert score_mot(tmp_path / "gt", tmp_path / "r", benchmark="plain").combined.clear.fp == 0
    with pytest.raises(LabelFileError, match="--classes is for plain rules"):
        score_mot(tmp_path / "gt", tmp_path / "r", benchmark="MOT17", classes=["1"])


def test_results_for_another_video_are_refused(tmp_path: Path) -> None:
    _sequence(tmp_path, "a")
    results = _write(tmp_path / "a.txt", "9,1,1,1,5,5,1\n")
    with pytest.raises(
        LabelFileError, match=r"a\.txt:1: needs at least 9 frames \(frame 9\), but the video has 2"
    ):
        score_mot(tmp_path / "a", results)


def test_a_sequence_without_results_or_truth_is_an_error_and_not_left_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _sequence(tmp_path / "gt", name)
    _write(tmp_path / "r" / "a.txt")
    with pytest.raises(LabelFileError, match="no results for 'b'"):
        score_mot(tmp_path / "gt", tmp_path / "r")
    with pytest.raises(LabelFileError, match="is one file for 2 sequences"):
        score_mot(tmp_path / "gt", tmp_path / "r" / "a.txt")
    (tmp_path / "gt" / "b" / "gt" / "gt.txt").unlink()
    with pytest.raises(LabelFileError, match=r"gt\.txt: is missing"):
        score_mot(tmp_path / "gt", tmp_path / "r")


def _frames(video: str, count: int, category: str = "car", **label: Any) -> list[dict[str, Any]]:
    box = {"x1": 0, "y1": 0, "x2": 9, "y2": 9}
    entry = {"id": "1", "category": category, "box2d": box} | label
    return [{"videoName": video, "frameIndex": t, "labels": [entry]} for t in range(count)]


def _json(path: Path, frames: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(frames))
    return path


def test_bdd_scores_by_class_with_both_tools_rules(tmp_path: Path) -> None:
    gt = _json(tmp_path / "gt.json", _frames("v", 3))
    found = score_bdd(gt, gt).as_dict()
    assert found["official"]["car"]["MOTA"] == 100
    assert found["official"]["vehicle"]["MOTA"] == 100
    assert found["trackeval"]["car"]["HOTA"] == pytest.approx(100)
    assert found["trackeval"]["COMBINED"]["TP"] == 3


def test_bdd_results_with_other_videos_frames_or_categories_are_refused(tmp_path: Path) -> None:
    gt = _json(tmp_path / "gt.json", _frames("v", 3) + _frames("w", 3))
    with pytest.raises(LabelFileError, match="no results for video 'w'"):
        score_bdd(gt, _json(tmp_path / "r.json", _frames("v", 3) + _frames("x", 3)))
    with pytest.raises(LabelFileError, match="'v' has 4 frames in the results, but 3 in"):
        score_bdd(gt, _json(tmp_path / "r.json", _frames("v", 4) + _frames("w", 3)))
    with pytest.raises(LabelFileError, match="unknown category 'zebra'"):
        score_bdd(gt, _json(tmp_path / "r.json", _frames("v", 3, "zebra") + _frames("w", 3)))
    with pytest.raises(LabelFileError, match="boxes without an id"):
        score_bdd(gt, _json(tmp_path / "r.json", _frames("v", 3, id=None) + _frames("w", 3)))
    more = _json(tmp_path / "more.json", _frames("v", 3) + _frames("w", 3) + _frames("x", 3))
    assert "1 videos without ground truth are left out: x" in score_bdd(gt, more).warnings[0]


def test_other_classes_than_bdds_can_be_named(tmp_path: Path) -> None:
    gt = _json(tmp_path / "gt.json", _frames("v", 2, "animal"))
    found = score_bdd(gt, gt, classes=["animal"]).as_dict()
    assert found["official"]["OVERALL"]["MOTA"] == 100
    assert "human" not in found["official"]
