from __future__ import annotations

import json
from pathlib import Path

import pytest

import run_pipeline


def _files(folder: Path) -> list[str]:
    gt, results = folder / "gt.txt", folder / "results.txt"
    gt.write_text("1,1,1,1,10,10,1,1,1\n2,1,1,1,10,10,1,1,1\n")
    results.write_text("1,1,1,1,10,10,1,-1,-1,-1\n2,2,1,1,10,10,1,-1,-1,-1\n")
    return ["track-score", "--gt", str(gt), "--results", str(results)]


def test_scores_are_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = _files(tmp_path)
    assert run_pipeline.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "COMBINED" in shown
    assert "IDSW" in shown
    content = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert content["COMBINED"]["IDSW"] == 1
    assert content["sequences"]["gt"]["MOTA"] == pytest.approx(50)
    assert run_pipeline.main([*arguments, "-o", str(tmp_path / "named.json")]) == 0
    assert json.loads((tmp_path / "named.json").read_text()) == content


def test_a_bad_line_ends_with_code_two_and_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = _files(tmp_path)
    (tmp_path / "results.txt").write_text("1,1,1,1,10,10,1\n1,1,1,1,10,10,1\n")
    assert run_pipeline.main([*arguments, "-o", str(tmp_path / "out")]) == 2
    assert "results.txt:2: identity 1 appears twice in frame 1 (first in line 1)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bdd_labels_are_scored_by_both_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label = {"id": "1", "category": "car", "box2d": {"x1": 0, "y1": 0, "x2": 9, "y2": 9}}
    path = tmp_path / "v.json"
    path.write_text(json.dumps([{"videoName": "v", "frameIndex": 0, "labels": [label]}]))
    assert run_pipeline.main(["track-score", "--format", "bdd", "--gt", str(path), "--results", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "official" in shown
    assert "TrackEval" in shown
