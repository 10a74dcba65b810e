from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.core.grid import PatchGrid
from pipeline.core.records import Detections, Features
from stages.track import RoiConfig
from stages.track.stage import describe_boxes

GRID = PatchGrid.from_input((48, 64), (48, 64), patch_px=8, stride_px=8)
BOXES = Detections(
    np.array([[3, 5, 40, 30], [20, 10, 64, 48]], np.float32),
    np.ones(2, np.float32),
    ("", ""),
    np.zeros(2, np.int64),
)


def _describe(maps: torch.Tensor, *, center: bool) -> np.ndarray:
    return describe_boxes(Features(maps, GRID), None, BOXES, RoiConfig(bins=2), center=center)


def test_what_all_cells_share_does_not_change_a_centred_descriptor() -> None:
    maps = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 6, 8)).astype(np.float32))
    shift = torch.tensor([10.0, -3, 0, 7, 100])[:, None, None]
    moved = _describe(maps + shift, center=True)
    assert np.allclose(moved, _describe(maps, center=True), atol=1e-4)
    assert not np.allclose(_describe(maps + shift, center=False), _describe(maps, center=False), atol=1)


def test_centring_before_and_after_the_pooling_is_the_same() -> None:
    maps = torch.from_numpy(np.random.default_rng(1).normal(size=(5, 6, 8)).astype(np.float32))
    before = _describe(maps - maps.mean(dim=(1, 2), keepdim=True), center=False)
    assert _describe(maps, center=True) == pytest.approx(before, abs=1e-5)
