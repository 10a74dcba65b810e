from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

import run_pipeline
from pipeline.bench import tracking as bench
from pipeline.evaluation.tracking_counts import total
from pipeline.evaluation.tracking_metrics import score
from pipeline.formats.mot_folders import find_sequences, open_sequence


def test_the_comparison_without_its_extra_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "img1").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "img1" / "000001.jpg")
    (tmp_path / "seqinfo.ini").write_text("[Sequence]\nname=x\n")
    monkeypatch.setitem(sys.modules, "trackers", None)
    assert run_pipeline.main(["bench", "tracking", "--root", str(tmp_path)]) == 2
    assert "liftstream[bench]" in capsys.readouterr().err
    assert run_pipeline.main(["bench", "tracking", "--root", str(tmp_path), "--every", "0"]) == 2
    assert "whole numbers from 1 on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (1, {"SORT": (81.8, 90.8), "ByteTrack": (83.8, 93.1), "BoT-SORT": (85.8, 93.2)}),
        (5, {"SORT": (61.8, 73.2), "ByteTrack": (77.0, 85.6), "BoT-SORT": (82.0, 87.2)}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_known_scores_of_the_packages_trackers(
    shared_dir: Path, step: int, expected: dict[str, tuple[float, float]]
) -> None:
    pytest.importorskip("trackers", reason="needs the extra 'bench'")
    opened = [open_sequence(s.folder) for s in find_sequences(shared_dir / "data" / "mot")]
    tasks = [bench.make_task(sequence, "det", step) for sequence in opened]
    methods = bench.other_trackers()
    for name, numbers in expected.items():
        row = total(score(t.gt, methods[name](t), t.num_frames) for t in tasks).as_dict()
        assert (row["HOTA"], row["IDF1"]) == pytest.approx(numbers, abs=0.051)
