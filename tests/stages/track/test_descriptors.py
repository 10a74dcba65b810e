from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.core.errors import ConfigError
from pipeline.core.grid import PatchGrid
from pipeline.core.records import Detections, Features, LabelMap
from stages.track import RoiConfig
from stages.track.descriptors import describe_boxes

GRID = PatchGrid.from_input((48, 64), (48, 64), patch_px=8, stride_px=8)
BOXES = Detections(
    np.array([[3, 5, 40, 30], [20, 10, 64, 48]], np.float32),
    np.ones(2, np.float32),
    ("", ""),
    np.zeros(2, np.int64),
)

ONE_BOX = Detections(np.array([[0, 0, 64, 48]], np.float32), np.ones(1, np.float32), ("",), np.zeros(1, np.int64))


def _describe(maps: torch.Tensor, *, center: bool) -> np.ndarray:
    return describe_boxes(Features(maps, GRID), None, BOXES, RoiConfig(bins=2), center=center)


def test_a_part_common_to_all_cells_does_not_change_a_centered_descriptor() -> None:
    maps = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 6, 8)).astype(np.float32))
    shift = torch.tensor([10.0, -3, 0, 7, 100])[:, None, None]
    moved = _describe(maps + shift, center=True)
    assert np.allclose(moved, _describe(maps, center=True), atol=1e-4)
    assert not np.allclose(_describe(maps + shift, center=False), _describe(maps, center=False), atol=1)


def test_centering_before_and_after_the_pooling_is_the_same() -> None:
    maps = torch.from_numpy(np.random.default_rng(1).normal(size=(5, 6, 8)).astype(np.float32))
    before = _describe(maps - maps.mean(dim=(1, 2), keepdim=True), center=False)
    assert _describe(maps, center=True) == pytest.approx(before, abs=1e-5)


def test_weighting_by_mask_leaves_the_other_object_out() -> None:
    """Two objects share a box; each cell holds its object's id as its feature."""
    mask = np.ones((48, 64), np.uint8)
    mask[:, 32:] = 2
    ids = GRID.sample_nearest(torch.from_numpy(mask))
    maps = LabelMap(torch.stack([(ids == n).float() for n in range(3)]), (1, 2), mask)
    values = Features(ids.float()[None], GRID)
    both = Detections(
        np.array([[0, 0, 64, 48]] * 2, np.float32), np.ones(2, np.float32), ("",) * 2, np.array([1, 2])
    )
    plain = describe_boxes(values, maps, both, RoiConfig(bins=1))
    masked = describe_boxes(values, maps, both, RoiConfig(bins=1, weighting="mask", weight_floor=0.0))
    assert plain.flatten().tolist() == pytest.approx([1.5, 1.5])
    assert masked.flatten().tolist() == pytest.approx([1.0, 2.0])


def test_weighting_by_saliency_leaves_the_background_out() -> None:
    saliency = torch.zeros(6, 8)
    saliency[:, 4:] = 1
    values = Features(saliency[None] * 5, GRID, saliency=saliency)
    weighted = describe_boxes(values, None, ONE_BOX, RoiConfig(bins=1, weighting="saliency", weight_floor=0.0))
    assert weighted.item() == pytest.approx(5.0)


def test_another_facet_can_describe_the_boxes() -> None:
    values = Features(torch.zeros(4, 6, 8), GRID, extra={"key@9": torch.ones(3, 6, 8)})
    assert describe_boxes(values, None, ONE_BOX, RoiConfig(), "key@9").shape == (1, 3, 3, 3)
    with pytest.raises(ConfigError, match=r"extract\.facets"):
        describe_boxes(values, None, ONE_BOX, RoiConfig(), "key@7")
