from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.errors import LabelFileError
from pipeline.core.records import VideoInfo
from pipeline.formats.bdd import BddVideo, Spelling, read_detections, read_videos, write_videos
from pipeline.formats.boxes import BoxTable

BOX = {"x1": 1.0, "y1": 2.0, "x2": 5.0, "y2": 9.0}


def _label(name: str | int | None = "a-1", category: str = "car", **more: Any) -> dict[str, Any]:
    return {"id": name, "category": category, "box2d": BOX, "attributes": {}} | more


def _file(folder: Path, frames: Any, name: str = "clip.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(frames))
    return path


def test_both_spellings_read_the_same(tmp_path: Path) -> None:
    new = [
        {"videoName": "v", "name": "v-2.jpg", "frameIndex": 1, "labels": [_label(attributes={"crowd": True})]},
        {"videoName": "v", "name": "v-1.jpg", "frameIndex": 0, "labels": None},
    ]
    old = [
        {"videoName": "v", "name": "v-2.jpg", "index": 1, "labels": [_label("7", attributes={"Crowd": True})]},
        {"videoName": "v", "name": "v-1.jpg", "index": 0},
    ]
    for frames in (new, {"frames": old}):
        video = read_videos(_file(tmp_path, frames))["v"]
        assert (video.num_frames, video.table.frames.tolist(), video.table.ids.tolist()) == (2, [1], [0])
        assert video.table.ignored.tolist() == [True]
        assert video.frame_names == {0: "v-1.jpg", 1: "v-2.jpg"}


def test_identities_are_numbers_of_their_own_in_every_video(tmp_path: Path) -> None:
    frames = [
        {"videoName": v, "frameIndex": 0, "labels": [_label("x"), _label(3)] if v == "b" else [_label(3)]}
        for v in ("a", "b")
    ]
    videos = read_videos(_file(tmp_path, frames))
    assert videos["a"].id_names == ("3",)
    assert videos["b"].id_names == ("x", "3")
    assert videos["b"].table.ids.tolist() == [0, 1]


def test_a_folder_holds_one_file_a_video(tmp_path: Path) -> None:
    for name in ("one", "two"):
        _file(tmp_path, [{"frameIndex": 0, "labels": [_label()]}], f"{name}.json")
    assert sorted(read_videos(tmp_path)) == ["one", "two"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(LabelFileError, match=r"holds no \.json files"):
        read_videos(empty)


def test_labels_without_a_box_are_left_out(tmp_path: Path) -> None:
    frames = [{"frameIndex": 0, "labels": [{"id": 1, "category": "lane", "poly2d": []}, _label(2)]}]
    assert len(read_videos(_file(tmp_path, frames))["clip"].table) == 1


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ({"a": 1}, "expected a list of frames"),
        ([3], "frame 0: is not an object"),
        ([{"frameIndex": -1}], "frame 0: frameIndex must be an integer"),
        ([{"frameIndex": 0}, {"frameIndex": 0}], "frame 1: frameIndex 0 appears twice"),
        ([{"frameIndex": 4, "labels": [_label(category="")]}], "frame 0 (index 4), label 0: has no category"),
        ([{"frameIndex": 0, "labels": [_label(), _label()]}], "label 1: identity 'a-1' appears twice"),
        ([{"frameIndex": 0, "labels": [_label(box2d={"x1": 1})]}], "label 0: needs numbers for box2d"),
        ([{"frameIndex": 0, "labels": [_label(score="high")]}], "label 0: needs numbers for box2d"),
        ([{"frameIndex": 0, "labels": [_label(box2d=BOX | {"x2": float("nan")})]}], "not finite"),
    ],
)
def test_a_bad_label_is_named_by_file_frame_and_place(tmp_path: Path, frames: Any, says: str) -> None:
    path = _file(tmp_path, frames)
    with pytest.raises(LabelFileError) as caught:
        read_videos(path)
    assert str(caught.value).startswith(str(path))
    assert says in str(caught.value)


def test_broken_json_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text('[\n{"name": }\n]')
    with pytest.raises(LabelFileError, match=r"broken\.json:2: not valid JSON"):
        read_videos(path)


@pytest.mark.parametrize("spelling", ["scalabel", "first"])
def test_what_is_written_reads_back_with_every_frame(tmp_path: Path, spelling: Spelling) -> None:
    table = BoxTable.make(
        [0, 0, 3],
        [0, 1, 0],
        np.array([[1, 2, 5, 9], [3.5, 2, 7.25, 9], [2, 2, 6, 9]]),
        scores=[0.5, 1, 0.25],
        categories=["car", "bus", "car"],
        ignored=[False, True, False],
    )
    write_videos(tmp_path / "out.json", [BddVideo("v", 5, table)], spelling=spelling)
    back = read_videos(tmp_path / "out.json")["v"]
    assert back.num_frames == 5
    assert np.allclose(back.table.xyxy, table.xyxy)
    assert back.table.ids.tolist() == table.ids.tolist()
    assert back.table.categories == table.categories
    assert back.table.ignored.tolist() == table.ignored.tolist()
    assert back.frame_names[0] == "v-0000001.jpg"


def test_written_frames_have_the_keys_the_official_tools_ask_for(tmp_path: Path) -> None:
    table = BoxTable.make([0], [4], [[1, 2, 5, 9]], categories=["car"])
    video = BddVideo("v", 2, table)
    write_videos(tmp_path / "new.json", [video])
    write_videos(tmp_path / "old.json", [video], spelling="first")
    new, old = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("new", "old"))
    assert [f["frameIndex"] for f in new] == [0, 1]
    assert new[1]["labels"] == []
    assert new[0]["labels"][0] == {
        "id": "4",
        "category": "car",
        "score": 1.0,
        "attributes": {"occluded": False, "truncated": False, "crowd": False},
        "box2d": BOX,
    }
    assert [f["index"] for f in old] == [0, 1]
    assert int(old[0]["labels"][0]["id"]) == 4
    assert set(old[0]["labels"][0]["attributes"]) == {"Occluded", "Truncated", "Crowd"}


def _info(name: str = "clip", num_frames: int = 2) -> VideoInfo:
    return VideoInfo(Path(name), 8, 10, Fraction(5), num_frames, Fraction(1, 5))


def test_detections_leave_crowds_out_and_are_clipped(tmp_path: Path) -> None:
    frames = [{"frameIndex": 1, "labels": [_label(1), _label(2, attributes={"crowd": True})]}]
    found = read_detections(_file(tmp_path, frames), _info())
    assert found[1].xyxy.tolist() == [[1, 2, 5, 8]]
    assert found[1].categories == ("car",)
    assert found.counts.clipped == 1


def test_detections_of_another_video_are_refused_with_both_counts(tmp_path: Path) -> None:
    path = _file(tmp_path, [{"frameIndex": 6, "labels": [_label()]}])
    with pytest.raises(LabelFileError, match=r"at least 7 frames \(frame 6\), but the video has 2"):
        read_detections(path, _info())
    many: list[dict[str, Any]] = [{"videoName": v, "frameIndex": 0, "labels": []} for v in ("a", "b")]
    with pytest.raises(LabelFileError, match=r"holds no labels for 'clip'; videos in it: a, b"):
        read_detections(_file(tmp_path, many), _info())
    assert read_detections(_file(tmp_path, many), _info("b")) == {}


def test_the_real_sample_reads_whole(shared_dir: Path) -> None:
    (video,) = read_videos(shared_dir / "data" / "bdd_sample" / "labels.json").values()
    assert (video.num_frames, len(video.table)) == (202, 3241)
