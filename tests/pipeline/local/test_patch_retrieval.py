from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import LabelFileError
from pipeline.core.grid import PatchGrid
from pipeline.local.box_layouts import read_coco
from pipeline.local.labeled_set import Image, LabeledSet
from pipeline.local.layouts import read_folder
from pipeline.local.patch_features import FeatureName, PatchFeatures
from pipeline.local.patch_retrieval import (
    Change,
    PatchRetrieval,
    RetrievalCounts,
    RetrievalKey,
    origins,
)
from pipeline.local.perturbations import Geometric, Photometric
from tests.pipeline.local.layouts import halves, make_coco, make_folder, save

FEATURE = FeatureName("token@0")


@dataclass
class RawPatches:
    """Stands for a backbone: a patch's features are its pixels, at half the image's size."""

    features: tuple[FeatureName, ...] = (FEATURE,)

    def resized(self, image: Image) -> Image:
        return np.ascontiguousarray(image[::2, ::2])

    def __call__(
        self, image: Image, change: Callable[[Image], Image] | None = None
    ) -> dict[FeatureName, PatchFeatures]:
        seen = self.resized(image)
        seen = seen if change is None else change(seen)
        patches = seen.reshape(4, 7, 6, 7, 3).transpose(0, 2, 1, 3, 4).reshape(24, -1)
        return {FEATURE: PatchFeatures(patches.astype(np.float32), PatchGrid.covering((56, 84), (4, 6)))}


def retrieve(data: LabeledSet, *changes: Change) -> Callable[[str, bool], RetrievalCounts]:
    counts = PatchRetrieval(RawPatches(), data, changes).run()  # type: ignore[arg-type]
    return lambda change, excluded: counts[RetrievalKey("token@0", change, excluded, 0)]


def test_patches_moved_by_whole_patches_are_found_exactly(tmp_path: Path) -> None:
    """28 of the 24 x 2 patches are objects that stay; those shifted in from outside have no label."""
    data = read_coco(make_coco(tmp_path) / "set.json")
    found = retrieve(data, Geometric("shift", 7.0))("shift 7", False)
    assert found.same_patch == found.patch_bound == found.queries > 0
    assert found.category == found.supercategory == found.queries
    assert found.background == 0
    assert found.overlap == pytest.approx(found.queries)


def test_the_source_image_can_be_left_out(tmp_path: Path) -> None:
    """Both images show the same objects, so a category is always there, and the same patch never."""
    data = read_coco(make_coco(tmp_path) / "set.json")
    found = retrieve(data, Photometric("noise", 0.01))
    excluded = found("noise 0.01", True)
    assert excluded.same_patch == excluded.patch_bound == 0
    assert excluded.category_bound == excluded.supercategory_bound == excluded.queries
    assert excluded.category <= excluded.supercategory <= excluded.queries
    assert found("noise 0.01", False).same_patch == excluded.queries


def test_a_category_that_only_one_image_has_cannot_be_found_without_it(tmp_path: Path) -> None:
    root = make_folder(tmp_path, groups=1, per_group=2)
    (root / "classes.json").unlink()
    save(root / "masks" / "g0" / "1.png", halves(0, 2))
    excluded = retrieve(read_folder(root), Photometric("noise", 0.05))("noise 0.05", True)
    assert excluded.queries == 24
    assert excluded.category == excluded.category_bound == 0


def test_origins_are_where_the_pixels_came_from() -> None:
    grid = PatchGrid.covering((28, 42), (4, 6))
    cells, overlap = origins(Geometric("shift", 3.5), grid)
    expected = np.stack(np.meshgrid(np.arange(6.0), np.arange(4.0)), axis=-1).reshape(-1, 2)
    np.testing.assert_allclose(cells, expected)
    np.testing.assert_allclose(overlap, 0.25)  # half a patch to the right and half down
    cells, overlap = origins(Geometric("rotate", 180.0), grid)
    np.testing.assert_allclose(cells, expected[::-1] + 0.5)
    np.testing.assert_allclose(overlap, 1.0)
    cells, overlap = origins(Geometric("scale", 2.0), grid)
    assert cells.min() == pytest.approx(1.25)
    np.testing.assert_allclose(overlap, 1.0)
    cells, overlap = origins(Photometric("blur", 2.0), grid)
    np.testing.assert_allclose(cells, expected + 0.5)
    np.testing.assert_allclose(overlap, 1.0)


def test_patches_that_left_the_image_bound_the_same_patch(tmp_path: Path) -> None:
    """Half the size: the border is mirrored and has no label, so every query still has its patch."""
    data = read_coco(make_coco(tmp_path) / "set.json")
    found = retrieve(data, Geometric("scale", 0.5))("scale 0.5", False)
    assert 0 < found.queries < 28
    assert found.patch_bound == found.queries
    assert found.overlap / found.queries < 0.3


def test_data_without_objects_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path, groups=1)
    for mask in (root / "masks" / "g0").iterdir():
        save(mask, halves(0, 0))
    with pytest.raises(LabelFileError, match="no patch of any image is an object"):
        retrieve(read_folder(root), Photometric("blur", 1.0))
