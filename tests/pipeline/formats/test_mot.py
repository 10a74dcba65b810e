from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import LabelFileError
from pipeline.core.records import Track, VideoInfo
from pipeline.formats.boxes import BoxTable
from pipeline.formats.mot import Kind, format_track, read_detections, read_table, write_table

INFO = VideoInfo(Path("video"), 100, 200, Fraction(24), 10, Fraction(1, 24))


def _file(folder: Path, text: str, name: str = "det.txt") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_boxes_count_from_zero_in_memory_and_from_one_in_the_file(tmp_path: Path) -> None:
    table = read_table(_file(tmp_path, "1,-1,11,21,30,40,0.5,-1,-1,-1\n"), kind="det")
    assert table.frames.tolist() == [0]
    assert table.xyxy.tolist() == [[10.0, 20.0, 40.0, 60.0]]
    assert table.scores.tolist() == [0.5]


def test_mot17_ground_truth_has_flag_class_and_visibility(tmp_path: Path) -> None:
    table = read_table(_file(tmp_path, "1,3,1,1,5,5,1,1,0.25\n1,4,1,1,5,5,0,12,1\n"), kind="gt")
    assert table.ignored.tolist() == [False, True]
    assert table.categories == ("1", "12")
    assert table.visibility.tolist() == [0.25, 1.0]


def test_world_coordinates_of_mot15_are_no_classes(tmp_path: Path) -> None:
    table = read_table(
        _file(tmp_path, "1,1,88,99,61.08,218.56,1,4.4852,5.5016,0\n1,2,1,1,2,2,1,3,4,0\n"), kind="gt"
    )
    assert table.categories == ("", "")
    assert table.visibility.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "text", ["1,1,2,3,4,5\n", "1 1 2 3 4 5\n", "\n1, 1, 2, 3, 4, 5,\n\n", "\ufeff1,1,2,3,4,5\r\n"]
)
def test_short_lines_blanks_and_line_ends_of_all_kinds_are_read(tmp_path: Path, text: str) -> None:
    table = read_table(_file(tmp_path, text), kind="results")
    assert table.xyxy.tolist() == [[1.0, 2.0, 5.0, 7.0]]
    assert table.scores.tolist() == [1.0]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("1,1,2,3,4", "5 columns"),
        ("1,1,2,3,four,5,1", "not a number"),
        ("1,1,2,3,nan,5,1", "not finite"),
        ("1.5,1,2,3,4,5,1", "integers"),
        ("0,1,2,3,4,5,1", "frames count from 1"),
        ("1,7,2,3,4,5,1", "identity 7 appears twice in frame 1"),
        ("11,1,2,3,4,5,1", "at least 11 frames (frame 11), but the video has 10"),
    ],
)
@pytest.mark.parametrize("kind", ["gt", "det", "results"])
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, kind: Kind, line: str, says: str) -> None:
    path = _file(tmp_path, f"1,7,2,3,4,5,1\n\n{line}\n")
    with pytest.raises(LabelFileError) as caught:
        read_table(path, kind=kind, num_frames=10)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert says in str(caught.value)


def test_only_detections_may_lack_an_identity(tmp_path: Path) -> None:
    path = _file(tmp_path, "1,-1,2,3,4,5,1\n1,-1,2,3,4,5,1\n")
    assert len(read_table(path, kind="det")) == 2
    with pytest.raises(LabelFileError, match=r"det.txt:1: identity -1"):
        read_table(path, kind="results")


def test_missing_and_binary_files_are_errors_that_name_them(tmp_path: Path) -> None:
    with pytest.raises(LabelFileError, match=r"gone\.txt: cannot be read"):
        read_table(tmp_path / "gone.txt", kind="det")
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(LabelFileError, match=r"picture\.txt: is not a text file"):
        read_table(tmp_path / "picture.txt", kind="det")


def test_detections_are_clipped_and_empty_ones_skipped_and_both_counted(tmp_path: Path) -> None:
    lines = [
        "1,-1,-9,1,20,20,0.9",
        "1,-1,11,11,20,20,0.8",
        "2,-1,5,5,0,9,0.7",
        "2,-1,500,5,9,9,0.6",
        "4,-1,5,5,-3,9,1",
    ]
    found = read_detections(_file(tmp_path, "\n".join(lines)), INFO)
    assert sorted(found) == [0]
    assert found[0].xyxy.tolist() == [[0.0, 0.0, 10.0, 20.0], [10.0, 10.0, 30.0, 30.0]]
    assert found[0].scores == pytest.approx([0.9, 0.8])
    assert (found.counts.clipped, found.counts.skipped) == (1, 3)
    assert found.warnings == [f"{tmp_path / 'det.txt'}: 1 boxes clipped to the image, 3 without area skipped"]


def test_nothing_to_say_about_boxes_that_fit(tmp_path: Path) -> None:
    assert read_detections(_file(tmp_path, "1,-1,11,11,20,20,0.8"), INFO).warnings == []


@pytest.mark.parametrize("kind", ["gt", "results", "det"])
def test_what_is_written_reads_back_the_same(tmp_path: Path, kind: Kind) -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(-5, 90, (20, 2)).round(2)
    table = BoxTable.make(
        np.repeat(np.arange(5), 4),
        [-1] * 20 if kind == "det" else np.tile(np.arange(4), 5),
        np.concatenate([corner, corner + rng.uniform(1, 50, (20, 2)).round(2)], axis=1),
        scores=np.ones(20) if kind == "gt" else rng.uniform(size=20).round(4),
        categories=["3"] * 20 if kind == "gt" else None,
        ignored=rng.random(20) < 0.5 if kind == "gt" else None,
        visibility=rng.uniform(size=20).round(3) if kind == "gt" else None,
    )
    write_table(tmp_path / "new" / "file.txt", table, kind=kind)
    back = read_table(tmp_path / "new" / "file.txt", kind=kind)
    assert np.allclose(back.xyxy, table.xyxy)
    assert back.ids.tolist() == table.ids.tolist()
    assert back.frames.tolist() == table.frames.tolist()
    assert back.categories == table.categories
    assert back.ignored.tolist() == table.ignored.tolist()
    assert np.allclose(back.visibility, table.visibility)
    if kind != "gt":
        assert np.allclose(back.scores, table.scores)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["file.txt"]


def test_results_are_written_by_frame_with_ten_columns(tmp_path: Path) -> None:
    table = BoxTable.make([1, 0], [2, 1], [[0, 0, 4, 4], [1, 2, 3, 5]], scores=[0.5, 1])
    write_table(tmp_path / "tracks.txt", table, kind="results")
    assert (tmp_path / "tracks.txt").read_text() == (
        "1,1,2.00,3.00,2.00,3.00,1.0000,-1,-1,-1\n2,2,1.00,1.00,4.00,4.00,0.5000,-1,-1,-1\n"
    )


def test_a_track_reads_back_from_its_line(tmp_path: Path) -> None:
    line = format_track(6, Track(track_id=9, xyxy=(1.25, 2.5, 11.25, 22.5), score=0.75))
    table = read_table(_file(tmp_path, line), kind="results")
    assert (table.frames[0], table.ids[0], table.scores[0]) == (6, 9, 0.75)
    assert table.xyxy[0].tolist() == [1.25, 2.5, 11.25, 22.5]


def test_the_shared_sequences_read_whole(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "mot" / "park"
    info = VideoInfo(folder, 480, 854, Fraction(24), 50, Fraction(1, 24))
    found = read_detections(folder / "det" / "det.txt", info)
    assert len(found) == 50
    assert len(read_table(folder / "gt" / "gt.txt", kind="gt", num_frames=50)) > 100
