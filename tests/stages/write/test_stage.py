from __future__ import annotations

import csv
import hashlib
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.core.errors import OutputError
from pipeline.core.records import Frame, LabelMap, Packet, PartMap, Track, VideoInfo
from pipeline.core.state import load_state, save_state
from stages.write import WriteConfig, Writer
from stages.write.folder import check_output, clear_output, is_ours

HEIGHT, WIDTH = 48, 64
INFO = VideoInfo(Path("clip.mp4"), HEIGHT, WIDTH, Fraction(25), 40, Fraction(1, 25))
CONFIG = WriteConfig(encoder_preset="ultrafast")


def packet(index: int) -> Packet:
    """A frame with one object that moves right by a pixel per frame, and its track."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:20, index : index + 12] = 3
    picture = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
    picture[mask == 3] = (220, 60, 40)
    return Packet(
        frame=Frame(picture, index, index / 25, 1 / 25),
        parts=PartMap(np.zeros((2, 2), np.uint8), 1, (mask > 0).astype(np.uint8), np.zeros((2, 2), np.float32)),
        labels=LabelMap(torch.zeros(2, 2, 2), (3,), mask, (0.75,)),
        tracks=(Track(3, (float(index), 10.0, index + 12.0, 20.0), 0.75),),
        annotated=picture,
    )


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file below a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write(folder: Path, indices: Iterator[int] | range, *, segment_frames: int = 8) -> Writer:
    """All packets through a writer, a segment ended after every ``segment_frames``."""
    writer = Writer(CONFIG, folder, INFO)
    for number, index in enumerate(indices, start=1):
        writer.step(packet(index))
        if number % segment_frames == 0:
            writer.end_segment()
    writer.publish()
    writer.discard_checkpoint()
    return writer


def test_what_was_written_before_the_first_state_is_written_anew(tmp_path: Path) -> None:
    """A checkpoint of the first of two passes has no state of the writer, but frames may lie there."""
    write(tmp_path / "whole", range(20))
    first = Writer(CONFIG, tmp_path / "parts", INFO)
    for index in range(11):
        first.step(packet(index))
        if index % 4 == 3:  # another length of segments, so that old ones would be told apart
            first.end_segment()
    first.close()
    second = Writer(CONFIG, tmp_path / "parts", INFO)
    second.begin_again()
    for index in range(20):
        second.step(packet(index))
        if (index + 1) % 8 == 0:
            second.end_segment()
    second.publish()
    second.discard_checkpoint()
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.parametrize("stop", [8, 16, 24])
def test_a_writer_that_is_restored_writes_the_same_bytes(tmp_path: Path, stop: int) -> None:
    write(tmp_path / "whole", range(30))
    first = Writer(CONFIG, tmp_path / "parts", INFO)
    for index in range(stop + 5):
        first.step(packet(index))
        if (index + 1) % 8 == 0:
            first.end_segment()
        if index + 1 == stop:
            save_state(tmp_path, "write", first.state())
    first.close()  # as far as a killed process has come: five frames after the state was taken
    (tmp_path / "parts" / "masks" / ".00099.png.partial").write_bytes(b"torn")
    second = Writer(CONFIG, tmp_path / "parts", INFO)
    second.go_on()
    second.restore(load_state(tmp_path, "write"))
    assert second.frames_written == stop
    for index in range(stop, 30):
        second.step(packet(index))
        if (index + 1) % 8 == 0:
            second.end_segment()
    second.publish()
    second.discard_checkpoint()
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_the_file_list_is_what_sha256sum_checks(tmp_path: Path) -> None:
    write(tmp_path / "out", range(5))
    names = [line.split("  ")[1] for line in (tmp_path / "out" / "files.sha256").read_text().splitlines()]
    assert {"annotated.mp4", "tracks.txt", "objects.csv", "masks/00004.png", "parts/00000.png"} <= set(names)
    assert set(names) == set(contents(tmp_path / "out")) - {"run.json", "files.sha256"}
    subprocess.run(["sha256sum", "--quiet", "-c", "files.sha256"], cwd=tmp_path / "out", check=True)


def test_objects_csv_agrees_with_the_mask(tmp_path: Path) -> None:
    write(tmp_path / "out", range(3))
    with (tmp_path / "out" / "objects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    mask = packet(2).labels
    assert mask is not None
    ys, xs = np.nonzero(mask.index_mask == 3)
    row = rows[2]
    assert (row["frame"], row["object_id"], row["area_px"]) == ("2", "3", str(len(xs)))
    box = [int(row[name]) for name in ("left", "top", "right", "bottom")]
    assert box == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert float(row["centroid_x"]) == pytest.approx(xs.mean() + 0.5, abs=0.006)
    assert float(row["centroid_y"]) == pytest.approx(ys.mean() + 0.5, abs=0.006)
    assert float(row["confidence"]) == 0.75


def test_nothing_is_touched_before_the_first_packet(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write(folder, range(3))
    before = contents(folder)
    check_output(folder, tmp_path / "clip.mp4", overwrite=True)
    list(Writer(CONFIG, folder, INFO)(iter(())))
    assert contents(folder) == before


def test_overwriting_removes_the_earlier_files_and_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write(folder, range(6))
    (folder / "masks" / "mine.txt").write_text("notes")
    (folder / "mine").mkdir()
    write(folder, range(2))
    assert sorted(path.name for path in (folder / "masks").iterdir()) == ["00000.png", "00001.png", "mine.txt"]
    assert (folder / "mine").is_dir() is False or not any((folder / "mine").iterdir())


def test_a_file_of_someone_elses_is_an_error_and_stays(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "masks").mkdir(parents=True)
    (folder / "masks" / "00000.png").write_text("an annotation of a user's")
    with pytest.raises(OutputError, match="not a file of this run"):
        Writer(CONFIG, folder, INFO).step(packet(0))
    assert (folder / "masks" / "00000.png").read_text() == "an annotation of a user's"


def writer_for(folder: Path, frame_name: str) -> Writer:
    info = VideoInfo(Path("frames"), HEIGHT, WIDTH, Fraction(25), 1, Fraction(1, 25), frame_names=(frame_name,))
    return Writer(CONFIG, folder, info)


@pytest.mark.parametrize("name", ["../evil", "a/b", "/etc/x", "a\nb", "..\\evil"])
def test_a_frame_name_never_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="cannot be the name"):
        writer_for(tmp_path / "deep" / "out", name).step(packet(0))
    assert not [path for path in contents(tmp_path) if path.endswith(".png")]


@pytest.mark.parametrize("name", ["", "..", ". "])
def test_an_unusual_frame_name_stays_inside_the_folder(tmp_path: Path, name: str) -> None:
    list(writer_for(tmp_path / "out", name)(iter([packet(0)])))
    assert f"out/masks/{name}.png" in contents(tmp_path)


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (folder / "masks").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="leads out of"):
        Writer(CONFIG, folder, INFO).step(packet(0))
    assert not any((tmp_path / "elsewhere").iterdir())


def test_which_folders_a_run_may_write_to(tmp_path: Path) -> None:
    source = tmp_path / "clip.mp4"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    check_output(foreign, source, overwrite=False)
    check_output(tmp_path / "new", source, overwrite=False)
    (foreign / ".run.json.partial").write_text("killed while it began")
    check_output(foreign, source, overwrite=False)
    (foreign / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match="exists already"):
        check_output(foreign, source, overwrite=False)
    with pytest.raises(OutputError, match="not written by liftstream"):
        check_output(foreign, source, overwrite=True)
    clear_output(foreign)
    assert (foreign / "thesis.tex").exists()
    ours = tmp_path / "ours"
    write(ours, range(2))
    assert is_ours(ours)
    check_output(ours, source, overwrite=True)
    with pytest.raises(OutputError, match="this input lies in the folder"):
        check_output(ours, ours / "annotated.mp4", overwrite=True)
    with pytest.raises(OutputError, match="is a file"):
        check_output(ours / "annotated.mp4", source, overwrite=True)


def test_a_list_that_names_files_elsewhere_removes_none_of_them(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write(folder, range(2))
    victim = tmp_path / "victim.txt"
    victim.write_text("keep me")
    with (folder / "files.sha256").open("a") as file:
        file.write(f"{'0' * 64}  ../victim.txt\n{'0' * 64}  {victim}\n")
    clear_output(folder)
    assert victim.read_text() == "keep me"


def test_the_video_is_joined_once_unless_more_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[int] = []
    monkeypatch.setattr(
        "stages.write.stage.join_segments", lambda segments, output, _: joined.append(len(segments))
    )
    monkeypatch.setattr("stages.write.stage.sha256_of", lambda path: "0" * 64)
    writer = Writer(CONFIG, tmp_path / "out", INFO)
    list(writer(iter([packet(0)])))
    writer.publish()
    assert joined == [1]
    writer.step(packet(1))
    writer.publish()
    assert joined == [1, 2]
