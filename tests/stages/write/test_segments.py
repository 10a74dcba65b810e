from __future__ import annotations

import csv
import json
import shutil
from fractions import Fraction
from pathlib import Path

import av
import pytest

from pipeline.core.errors import OutputError
from pipeline.core.records import VideoInfo
from stages.write import SegmentWriter, WriteConfig, Writer
from stages.write.folder import check_output
from tests.stages.write.test_stage import HEIGHT, WIDTH, contents, packet

INFO = VideoInfo(Path("camera"), HEIGHT, WIDTH, Fraction(25), None, Fraction(1, 25), address="rtsp://camera/x")
NUM_FRAMES = 40


def config(**settings: float) -> WriteConfig:
    return WriteConfig(encoder_preset="ultrafast", segment_seconds=0.4, **settings)


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_a_segment_is_whole_when_it_appears(tmp_path: Path) -> None:
    writer = SegmentWriter(config(), tmp_path / "run", INFO)
    for index in range(25):
        writer.step(packet(index))
        folders = sorted((tmp_path / "run" / "segments").glob("*"))
        assert len(folders) == index // 10
        for number, folder in enumerate(folders):
            about = json.loads((folder / "segment.json").read_text())
            assert (about["number"], about["first_frame"], about["frames"]) == (number, 10 * number, 10)
            assert about["start_seconds"] == pytest.approx(0.4 * number)
            assert about["end_seconds"] == pytest.approx(0.4 * (number + 1))
            assert len(list((folder / "masks").glob("*.png"))) == 10
            assert len(rows(folder / "objects.csv")) == 11
            assert not (folder / "checkpoint").exists()
            with av.open(str(folder / "annotated.mp4")) as video:
                assert sum(1 for _ in video.decode(video=0)) == 10
    writer._close_writer()


def test_at_the_end_the_segments_are_the_folder_of_any_run(tmp_path: Path) -> None:
    whole = Writer(WriteConfig(encoder_preset="ultrafast"), tmp_path / "whole", INFO)
    segments = SegmentWriter(config(), tmp_path / "segments", INFO)
    for writer in (whole, segments):
        assert len(list(writer(packet(index) for index in range(NUM_FRAMES)))) == NUM_FRAMES
        writer.discard_checkpoint()
    expected, found = contents(tmp_path / "whole"), contents(tmp_path / "segments")
    assert set(found) == set(expected)
    different = {name for name in expected if found[name] != expected[name]}
    # The video has a key frame where a segment begins, so its bytes and its line in the list differ.
    assert different == {"annotated.mp4", "files.sha256"}
    with av.open(str(tmp_path / "segments" / "annotated.mp4")) as video:
        times = [float(frame.pts * frame.time_base) for frame in video.decode(video=0)]
    assert times == pytest.approx([index / 25 for index in range(NUM_FRAMES)])
    lines = (tmp_path / "segments" / "files.sha256").read_text().splitlines()
    assert {line.partition("  ")[2]: line.partition("  ")[0] for line in lines} == {
        name: value for name, value in found.items() if name not in ("files.sha256", "run.json")
    }


def test_old_segments_masks_and_rows_are_removed(tmp_path: Path) -> None:
    writer = SegmentWriter(config(keep_last_seconds=0.8), tmp_path / "run", INFO)
    most = 0
    for index in range(NUM_FRAMES):
        writer.step(packet(index))
        most = max(most, len(list((tmp_path / "run" / "segments").glob("*"))))
    writer.publish()
    assert most == 2
    assert [path.name for path in sorted((tmp_path / "run" / "masks").iterdir())] == [
        f"{index:05d}.png" for index in range(20, 40)
    ]
    assert [row[0] for row in rows(tmp_path / "run" / "objects.csv")[1:]] == [
        str(index) for index in range(20, 40)
    ]
    with av.open(str(tmp_path / "run" / "annotated.mp4")) as video:
        times = [float(frame.pts * frame.time_base) for frame in video.decode(video=0)]
    assert times == pytest.approx([index / 25 for index in range(20)])
    assert writer.report() == {
        "frames_written": NUM_FRAMES,
        "segments": 4,
        "segments_removed": 2,
        "frames_removed": 20,
    }


def test_a_segment_that_was_taken_away_is_left_out(tmp_path: Path) -> None:
    writer = SegmentWriter(config(), tmp_path / "run", INFO)
    for index in range(NUM_FRAMES):
        writer.step(packet(index))
    shutil.move(tmp_path / "run" / "segments" / "000001", tmp_path / "taken")
    writer.publish()
    assert len(list((tmp_path / "run" / "masks").iterdir())) == 30
    assert len(list((tmp_path / "taken" / "masks").iterdir())) == 10


def test_what_a_killed_run_left_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed = SegmentWriter(config(), folder, INFO)
    for index in range(25):
        killed.step(packet(index))
    killed._close_writer()
    (folder / "segments" / "000000" / "notes.txt").write_text("mine")
    check_output(folder, None, overwrite=True)
    with pytest.raises(OutputError, match="exists already"):
        check_output(folder, None, overwrite=False)
    writer = SegmentWriter(config(), folder, INFO)
    writer.step(packet(0))
    assert contents(folder / "segments") == {"000000/notes.txt": contents(folder / "segments")["000000/notes.txt"]}
    writer._close_writer()
