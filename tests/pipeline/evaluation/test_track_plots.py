from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image

from pipeline.evaluation.retrieval import GapCounts
from pipeline.evaluation.track_plots import draw_gaps, draw_timeline, timeline_matches, write_gaps
from pipeline.formats.boxes import BoxTable

GT = BoxTable.make([0, 1, 2, 1, 2], [4, 4, 4, 8, 8], [[0, 0, 9, 9]] * 3 + [[50, 0, 59, 9]] * 2)
TRACKS = BoxTable.make([0, 1, 2, 2], [1, 1, 2, 3], [[0, 0, 9, 9]] * 3 + [[80, 0, 89, 9]])


def test_a_timeline_shows_who_was_found_as_whom() -> None:
    """Identity 4 is taken over by track 2; identity 8 comes later and is never found."""
    assert timeline_matches(GT, TRACKS, 3).tolist() == [[1, 1, 2], [-1, 0, 0]]


def test_timeline_is_drawn(tmp_path: Path) -> None:
    draw_timeline(tmp_path / "timeline.png", "two objects", GT, TRACKS, 3, 0.1)
    with Image.open(tmp_path / "timeline.png") as image:
        assert min(image.size) > 100


def test_curves_as_csv_and_plot(tmp_path: Path) -> None:
    curves = {"raw": {1: GapCounts(10, 8, 6, 9), 5: GapCounts(4, 4, 2, 3)}}
    write_gaps(tmp_path / "gaps.csv", curves, 0.2)
    draw_gaps(tmp_path / "gaps.png", "curves", curves, 0.2)
    with (tmp_path / "gaps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["gap_frames"] for row in rows] == ["1", "5"]
    assert (rows[0]["instance"], rows[0]["instance_all"], rows[0]["category"]) == ("0.7500", "0.6000", "0.9000")
    assert (tmp_path / "gaps.png").stat().st_size > 1000
