from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import ConfigError, InputError, LabelFileError, MaskError, MediaError
from pipeline.local.box_layouts import FAIR1M_GROUPS, read_coco, read_fair1m
from pipeline.local.labeled_set import IGNORED
from pipeline.local.layouts import read_ade20k, read_cityscapes, read_davis_set, read_folder
from pipeline.local.open_set import open_labeled_set
from tests.pipeline.local.layouts import (
    LEFT,
    RIGHT,
    halves,
    make_ade20k,
    make_cityscapes,
    make_coco,
    make_fair1m,
    make_folder,
    picture,
    save,
)


def test_cityscapes_label_ids_become_train_ids(tmp_path: Path) -> None:
    data = read_cityscapes(make_cityscapes(tmp_path))
    assert len(data.classes) == 19
    assert data.groups == ("aachen", "bochum", "munster")
    assert [image.name for image in data.of_split("val").images] == ["munster_000000_000002"]
    _, labels = data.images[0].load()
    road, car = ([c.name for c in data.classes].index(name) for name in ("road", "car"))
    assert (road, car) == (0, 13)
    assert (labels[0] == IGNORED).all()
    assert (labels[1:, LEFT] == road).all()
    assert (labels[1:, RIGHT] == car).all()
    assert data.classes[car].supercategory == "vehicle"


def test_ade20k_zero_is_ignored_and_class_one_is_the_first(tmp_path: Path) -> None:
    data = read_ade20k(make_ade20k(tmp_path))
    assert len(data.classes) == 150
    assert data.classes[4].name == "name 5"
    _, labels = data.of_split("train").images[0].load()
    assert set(np.unique(labels[:, LEFT])) == {0}
    assert set(np.unique(labels[:, RIGHT])) == {IGNORED}
    assert set(np.unique(data.of_split("val").images[0].load()[1])) == {0, 4}


def test_a_folder_needs_no_names_and_reads_davis_masks(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    data = read_folder(root)
    assert [(c.name, c.supercategory, c.is_background) for c in data.classes] == [
        ("background", "background", True),
        ("dots", "ink", False),
    ]
    assert data.groups == ("g0", "g1", "g2")
    (root / "classes.json").unlink()
    save(root / "masks" / "g0" / "0.png", halves(0, 255))
    unnamed = read_folder(root)
    assert [c.name for c in unnamed.classes] == ["background", "class 1"]
    assert set(np.unique(unnamed.images[0].load()[1])) == {0, 1}


def test_a_folder_may_have_splits(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", 1)
    make_folder(tmp_path / "val", 1, 1)
    data = read_folder(tmp_path)
    assert data.splits == ("train", "val")
    assert len({image.name for image in data.images}) == 3


def test_davis_sequences_are_groups_and_may_be_classes(tmp_path: Path) -> None:
    for sequence in ("cat", "dog"):
        for frame in ("00000", "00001"):
            save(tmp_path / "JPEGImages" / "480p" / sequence / f"{frame}.jpg", picture(0))
            save(tmp_path / "Annotations" / "480p" / sequence / f"{frame}.png", halves(0, 255))
    (tmp_path / "ImageSets" / "2016").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2016" / "val.txt").write_text("cat\ndog\n")
    objects = read_davis_set(tmp_path)
    assert [c.name for c in objects.classes] == ["background", "object"]
    assert set(np.unique(objects.images[3].load()[1])) == {0, 1}
    sequences = read_davis_set(tmp_path, "sequence")
    assert [c.name for c in sequences.classes] == ["background", "cat", "dog"]
    assert set(np.unique(sequences.of_groups(["dog"]).images[0].load()[1])) == {0, 2}


def test_a_rotated_box_holds_the_pixels_whose_centers_it_holds(tmp_path: Path) -> None:
    data = read_fair1m(make_fair1m(tmp_path))
    assert len(data.classes) == 1 + sum(map(len, FAIR1M_GROUPS.values())) == 38
    assert data.splits == ("train",)
    _, labels = data.images[0].load()
    y, x = np.mgrid[0:56, 0:84] + 0.5
    plane, car = 1, [c.name for c in data.classes].index("Small Car")
    in_car = (x > 28) & (x < 32) & (y > 28) & (y < 32)
    expected = np.where(in_car, car, np.where(np.abs(x - 30) + np.abs(y - 30) < 20, plane, 0))
    on_the_edge = np.abs(np.abs(x - 30) + np.abs(y - 30) - 20) < 1e-9
    assert (labels == expected)[~on_the_edge].all()
    assert data.classes[car].supercategory == "Vehicle"


def test_coco_draws_polygons_boxes_and_runs(tmp_path: Path) -> None:
    data = read_coco(make_coco(tmp_path) / "set.json")
    names = [c.name for c in data.classes]
    assert names == ["background", "bird", "cat", "dog"]
    _, labels = data.images[0].load()
    expected = np.zeros((56, 84), int)
    expected[7:49, 7:35], expected[7:49, 49:77], expected[:3, :2] = 2, 3, 1
    np.testing.assert_array_equal(labels, expected)


def test_a_coco_root_gives_its_splits(tmp_path: Path) -> None:
    made = make_coco(tmp_path / "made")
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / "annotations" / f"instances_{split}.json").write_bytes((made / "set.json").read_bytes())
        for image in (made / "images").iterdir():
            save(tmp_path / split / image.name, picture(0))
    data = read_coco(tmp_path)
    assert data.splits == ("train", "val")
    assert data.of_split("val").images[0].path == tmp_path / "val2017" / "0.jpg"


@pytest.mark.parametrize("layout", ["cityscapes", "ade20k", "davis", "folder", "fair1m", "coco"])
def test_a_folder_in_another_layout_is_an_input_error_that_names_it(tmp_path: Path, layout: str) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="other"):
        open_labeled_set(layout, tmp_path / "other")  # type: ignore[arg-type]


def test_bad_labels_name_the_file_and_the_value(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "folder")
    mask = save(root / "masks" / "g0" / "0.png", halves(0, 9))
    with pytest.raises(MaskError, match=rf"{mask}: the value 9 "):
        read_folder(root).images[0].load()
    save(root / "masks" / "g0" / "0.png", halves(0, 1)[:20])
    with pytest.raises(MaskError, match="84 x 56 pixels, its labels 84 x 20"):
        read_folder(root).images[0].load()
    mask.unlink()
    with pytest.raises(MaskError, match="has no labels; expected"):
        read_folder(root)
    city = make_cityscapes(tmp_path / "city")
    save(city / "gtFine" / "val" / "munster" / "munster_000000_000002_gtFine_labelIds.png", halves(7, 90))
    with pytest.raises(MaskError, match="the value 90 is not a class"):
        read_cityscapes(city).of_split("val").images[0].load()


def test_bad_box_files_are_refused(tmp_path: Path) -> None:
    xml = make_fair1m(tmp_path) / "train" / "part1" / "labelXml" / "0.xml"
    good = xml.read_text()
    for bad, message in (
        (good.replace("Boeing737", "Boeing999"), "unknown class 'Boeing999'"),
        (good.replace("30.000000,10.000000", "30.0"), "at least three points|not written x,y"),
        ("<annotation>", "cannot be read"),
    ):
        xml.write_text(bad)
        with pytest.raises(LabelFileError, match=message):
            read_fair1m(tmp_path).images[0].load()
    coco = make_coco(tmp_path / "coco") / "set.json"
    content = json.loads(coco.read_text())
    content["annotations"][0]["category_id"] = 5
    coco.write_text(json.dumps(content))
    with pytest.raises(LabelFileError, match="annotation 0: category_id 5"):
        read_coco(coco)
    coco.write_text("{}")
    with pytest.raises(LabelFileError, match="expected a COCO data set"):
        read_coco(coco)


def test_selection_of_images(tmp_path: Path) -> None:
    data = read_folder(make_folder(tmp_path, groups=3, per_group=4))
    assert [i.name for i in data.spread(per_group=2, every=2).images] == [
        "g0/0", "g0/2", "g1/0", "g1/2", "g2/0", "g2/2",
    ]  # fmt: skip
    assert len(data.spread(limit=5).images) == 5
    with pytest.raises(ConfigError, match="no group 'g9'"):
        data.of_groups(["g9"])
    with pytest.raises(MediaError, match="no images of split 'val'"):
        data.of_split("val")
