from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import LabelFileError
from pipeline.core.records import VideoInfo
from pipeline.formats import detections
from pipeline.formats.coco import read_detections, read_table


def _file(folder: Path, content: Any) -> Path:
    path = folder / "coco.json"
    path.write_text(json.dumps(content))
    return path


def _entry(image: Any, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": 3, "bbox": [1, 2, 4, 5], "score": 0.5} | more


def _info(names: tuple[str, ...] = (), num_frames: int = 3) -> VideoInfo:
    return VideoInfo(Path("v"), 20, 20, Fraction(24), num_frames, Fraction(1, 24), names)


def test_results_give_boxes_scores_and_category_numbers(tmp_path: Path) -> None:
    table = read_table(_file(tmp_path, [_entry(0), _entry(2, score=0.25)]))
    assert table.frames.tolist() == [0, 2]
    assert table.xyxy[0].tolist() == [1, 2, 5, 7]
    assert table.scores.tolist() == [0.5, 0.25]
    assert table.categories == ("3", "3")


def test_image_numbers_without_a_zero_count_from_one(tmp_path: Path) -> None:
    assert read_table(_file(tmp_path, [_entry(1), _entry(3)])).frames.tolist() == [0, 2]


def test_a_data_set_ties_images_to_frames_by_name_and_names_its_categories(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 40, "file_name": "d/b.jpg"}, {"id": 41, "file_name": "d/a.jpg"}],
        "categories": [{"id": 3, "name": "car"}],
        "annotations": [_entry(40), _entry(41)],
    }
    found = read_detections(_file(tmp_path, content), _info(("a", "b"), 2))
    assert sorted(found) == [0, 1]
    assert found[0].categories == ("car",)
    table = read_table(_file(tmp_path, content), frame_names=("a", "b"))
    assert table.frames.tolist() == [1, 0]


def test_without_names_the_images_go_by_the_order_of_their_file_names(tmp_path: Path) -> None:
    content = {
        "images": [
            {"id": 9, "file_name": "f2.jpg"},
            {"id": 7, "file_name": "f3.jpg"},
            {"id": 8, "file_name": "f1.jpg"},
        ],
        "annotations": [_entry(9), _entry(7), _entry(8)],
    }
    assert read_table(_file(tmp_path, content), num_frames=3).frames.tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"boxes": []}, "expected a list of detections"),
        ([{"bbox": [1, 2, 3, 4]}], "entry 0: has no image_id"),
        ([_entry(0), _entry(0, bbox=[1, 2, 3])], "entry 1: needs bbox"),
        ([_entry(0, score=None)], "entry 0: needs bbox"),
        ([_entry([1])], "entry 0: image_id must be a number or a name"),
        ([_entry(0, bbox=[1, 2, 3, float("inf")])], "entry 0: holds a value that is not finite"),
        ([_entry(0), _entry(7)], "at least 8 frames (frame 7), but the video has 3"),
        ([_entry("unknown.jpg")], "image unknown.jpg is not a frame of the video"),
    ],
)
def test_a_bad_entry_is_named_by_file_and_place(tmp_path: Path, content: Any, says: str) -> None:
    path = _file(tmp_path, content)
    with pytest.raises(LabelFileError) as caught:
        read_detections(path, _info())
    assert str(caught.value).startswith(str(path))
    assert says in str(caught.value)


def test_any_detections_file_is_told_by_its_content(tmp_path: Path) -> None:
    coco = _file(tmp_path, [_entry(0)])
    bdd = tmp_path / "bdd.json"
    label = {"id": "1", "category": "car", "box2d": {"x1": 1, "y1": 2, "x2": 5, "y2": 7}}
    bdd.write_text(json.dumps([{"frameIndex": 0, "labels": [label]}]))
    mot = tmp_path / "det.txt"
    mot.write_text("1,-1,2,3,4,5,0.5\n")
    for path in (coco, bdd, mot):
        assert detections.read_detections(path, _info())[0].xyxy.tolist() == [[1, 2, 5, 7]]
