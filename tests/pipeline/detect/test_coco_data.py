from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.errors import InputError, LabelFileError
from pipeline.detect.coco_data import CocoObject, make_target, object_mask, read_coco
from pipeline.detect.model import Placement
from pipeline.formats.rle import encode_mask, mask_counts
from tests.pipeline.detect.squares import IMAGE_HW, write_set


def test_all_forms_of_a_segmentation_give_the_mask() -> None:
    mask = np.zeros((20, 30), np.bool_)
    mask[4:11, 6:21] = True
    corners = [6, 4, 21, 4, 21, 11, 6, 11]
    counts = mask_counts(mask).tolist()
    forms = ([corners], encode_mask(mask), {"size": [20, 30], "counts": counts}, None)
    for form in forms:
        item = CocoObject(0, (6.0, 4.0, 15.0, 7.0), form)
        np.testing.assert_array_equal(object_mask(item, (20, 30), "x"), mask)


def test_targets_lie_on_the_input_and_mirror_with_it(tmp_path: Path) -> None:
    data = read_coco(write_set(tmp_path / "set", 2), tmp_path / "set" / "images")
    image, place = data.images[0], Placement.fit(IMAGE_HW, (64, 96))
    assert place.size_hw == (64, 96)
    plain = make_target(image, place, (64, 96), mirrored=False)
    mirrored = make_target(image, place, (64, 96), mirrored=True)
    np.testing.assert_array_equal(plain["masks"].numpy()[:, :, ::-1], mirrored["masks"].numpy())
    for target in (plain, mirrored):
        for box, mask in zip(target["boxes"].numpy(), target["masks"].numpy(), strict=True):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(found, box, atol=1.01)
    assert plain["labels"].tolist() == [item.label + 1 for item in image.objects]


def changed(path: Path, **changes: Any) -> Path:
    content = json.loads(path.read_text())
    for key, value in changes.items():
        content[key] = value if not isinstance(value, dict) else [{**content[key][0], **value}, *content[key][1:]]
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": "no"}, "'images' must be a list"),
        ({"categories": []}, "holds no categories"),
        ({"annotations": {"bbox": [1, 2, 0, 4]}}, "annotation 0: bbox .* has no area"),
        ({"annotations": {"bbox": None}}, "annotation 0: needs bbox"),
        ({"annotations": {"category_id": 99}}, "category 99 is not in"),
        ({"annotations": {"image_id": 99}}, "annotations of image 99"),
        ({"images": {"file_name": "../../secret.png"}}, "leads out of"),
        ({"images": {"file_name": "none.png"}}, "no such image"),
        ({"images": {"height": "tall"}}, "needs height and width"),
    ],
)
def test_bad_files_are_refused_with_the_place(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = changed(write_set(tmp_path / "set", 2), **changes)
    with pytest.raises(InputError, match=message):
        read_coco(path, tmp_path / "set" / "images")


@pytest.mark.parametrize(
    "form", [{"size": [9, 9], "counts": "11"}, {"size": [20, 30], "counts": [5, 5]}, {"counts": []}, [[1, 2, 3]]]
)
def test_a_segmentation_that_does_not_fit_is_an_error(form: Any) -> None:
    with pytest.raises(LabelFileError, match=r"x\.jpg: a segmentation cannot be read"):
        object_mask(CocoObject(0, (1.0, 1.0, 2.0, 2.0), form), (20, 30), "x.jpg")
