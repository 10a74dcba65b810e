from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image

from pipeline.core.errors import LabelFileError, MediaError
from pipeline.formats.mot_folders import find_sequences, load_sequence, open_sequence, read_seqinfo

INI = "[Sequence]\nname={name}\nimDir={images}\nframeRate=25\nseqLength={length}\nimWidth=8\nimHeight=6\n"


def _sequence(root: Path, name: str, *, frames: int = 2, ini: bool = True, images: str = "img1") -> Path:
    folder = root / name
    (folder / images).mkdir(parents=True)
    for number in range(1, frames + 1):
        Image.new("RGB", (8, 6)).save(folder / images / f"{number:06d}.jpg")
    (folder / "gt").mkdir()
    (folder / "gt" / "gt.txt").write_text("1,1,1,1,2,2,1,1,1\n")
    if ini:
        (folder / "seqinfo.ini").write_text(INI.format(name=name, images=images, length=frames))
    return folder


def test_size_length_and_rate_of_a_sequence(tmp_path: Path) -> None:
    opened = open_sequence(_sequence(tmp_path, "MOT20-01", frames=3, images="frames"))
    assert (opened.video.image_hw, opened.video.num_frames, opened.video.frame_rate) == ((6, 8), 3, Fraction(25))
    assert opened.video.frame_names == ("000001", "000002", "000003")
    assert opened.warnings == []


def test_without_seqinfo_the_images_are_enough_and_a_warning_says_so(tmp_path: Path) -> None:
    opened = open_sequence(_sequence(tmp_path, "seq", ini=False))
    assert opened.video.num_frames == 2
    assert len(opened.warnings) == 1
    assert "no seqinfo.ini" in opened.warnings[0]


def test_a_length_that_differs_from_the_images_is_a_warning_with_both(tmp_path: Path) -> None:
    folder = _sequence(tmp_path, "seq", frames=2)
    (folder / "seqinfo.ini").write_text(INI.format(name="seq", images="img1", length=9))
    (warning,) = open_sequence(folder).warnings
    assert "says 9 frames, the folder has 2" in warning


def test_a_folder_that_is_no_sequence_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(LabelFileError, match=r"not a MOT sequence; expected seqinfo\.ini"):
        load_sequence(tmp_path)
    with pytest.raises(LabelFileError, match="has no MOT sequence"):
        find_sequences(tmp_path)
    with pytest.raises(LabelFileError, match="is not a folder"):
        find_sequences(tmp_path / "gone")


def test_labels_without_images_can_be_scored_but_not_opened(tmp_path: Path) -> None:
    folder = tmp_path / "TUD"
    (folder / "gt").mkdir(parents=True)
    (folder / "gt" / "gt.txt").write_text("")
    assert load_sequence(folder).name == "TUD"
    with pytest.raises(MediaError, match=r"img1: no such folder"):
        open_sequence(folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name=x\n", "not a seqinfo.ini"),
        ("[Other]\nname=x\n", "not a seqinfo.ini"),
        ("[Sequence]\nframeRate=fast\n", "frameRate = 'fast' is not a number"),
        ("[Sequence]\nseqLength=0\n", "seqLength must be positive"),
    ],
)
def test_a_broken_seqinfo_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "seqinfo.ini").write_text(text)
    with pytest.raises(LabelFileError) as caught:
        read_seqinfo(tmp_path / "seqinfo.ini")
    assert str(caught.value).startswith(str(tmp_path / "seqinfo.ini"))
    assert says in str(caught.value)


def test_seqinfo_may_be_short(tmp_path: Path) -> None:
    (tmp_path / "seqinfo.ini").write_text("[Sequence]\nname=TUD-Campus\nseqLength=71\nframeRate=29.97\n")
    info = read_seqinfo(tmp_path / "seqinfo.ini")
    assert (info.name, info.num_frames, info.image_hw, info.frame_rate) == (
        "TUD-Campus",
        71,
        None,
        Fraction("29.97"),
    )


def test_mot17_copies_are_told_apart_by_their_detector(tmp_path: Path) -> None:
    for split, number in (("train", "02"), ("test", "01")):
        for detector in ("DPM", "FRCNN", "SDP"):
            _sequence(tmp_path / split, f"MOT17-{number}-{detector}")
    assert len(find_sequences(tmp_path)) == 6
    train = find_sequences(tmp_path, split="train", detector="FRCNN")
    assert [(s.name, s.base_name, s.detector) for s in train] == [("MOT17-02-FRCNN", "MOT17-02", "FRCNN")]
    assert len(find_sequences(tmp_path, names=["MOT17-02"])) == 3
    assert [s.name for s in find_sequences(tmp_path, names=["MOT17-01-SDP"])] == ["MOT17-01-SDP"]
    with pytest.raises(LabelFileError, match=r"no sequence MOT17-99; there are: MOT17-02-DPM"):
        find_sequences(tmp_path, names=["MOT17-99"])
    with pytest.raises(LabelFileError, match="has no split 'val'"):
        find_sequences(tmp_path, split="val")


def test_one_sequence_can_be_given_itself(tmp_path: Path) -> None:
    folder = _sequence(tmp_path, "park")
    assert [s.folder for s in find_sequences(folder)] == [folder]
