from __future__ import annotations

import math

import torch

from pipeline.detect.roi_pooling import LevelPooling, assign_levels, roi_align
from stages.track.roi_align import RoiAlignSpec, separable_roi_align


def made_boxes(count: int) -> torch.Tensor:
    """Boxes of all sizes around a map of 9 x 13 cells, some of them partly or wholly outside."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, generator=generator) * 18 - 3
    return torch.cat([corners, corners + torch.rand(count, 2, generator=generator) * 15], dim=1)


def test_pooling_by_grid_sample_gives_the_numbers_of_the_separable_products() -> None:
    features = torch.randn(5, 9, 13, generator=torch.Generator().manual_seed(1))
    boxes = made_boxes(40)
    for size in (1, 3, 7):
        expected = separable_roi_align(features, boxes, RoiAlignSpec((size, size), 0, aligned=True))
        torch.testing.assert_close(roi_align(features, boxes, size), expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_features() -> None:
    features = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0.7, 0.2, 4.1, 4.9], [-1.0, 2.0, 9.0, 3.5]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda values: roi_align(values, boxes, 2), (features,))


def test_levels_follow_the_formula_of_feature_pyramid_networks() -> None:
    for side in (10, 55, 57, 111, 113, 223, 225, 447, 449, 900):
        level = min(max(math.floor(4 + math.log2(side / 224)), 2), 5)
        box = torch.tensor([[0.0, 0.0, side, side]])
        assert assign_levels(box, [4, 8, 16, 32]).tolist() == [level - 2]


def test_boxes_of_a_batch_are_pooled_from_their_own_image_and_level() -> None:
    levels = {
        "0": torch.zeros(2, 1, 32, 32),
        "1": torch.zeros(2, 1, 16, 16),
        "pool": torch.full((2, 1, 8, 8), 9.0),
    }
    for image in (0, 1):
        levels["0"][image], levels["1"][image] = 10 * image + 1, 10 * image + 2
    small, large = torch.tensor([[8.0, 8.0, 40.0, 40.0]]), torch.tensor([[0.0, 0.0, 250.0, 250.0]])
    pooled = LevelPooling([8, 16], 2)(levels, [torch.cat([large, small]), small], [(256, 256)] * 2)
    torch.testing.assert_close(pooled.mean(dim=(1, 2, 3)), torch.tensor([1.0 + 1, 1.0, 11.0]), rtol=0, atol=1e-5)
    assert LevelPooling([8, 16], 2)(levels, [torch.zeros(0, 4)] * 2, [(256, 256)] * 2).shape == (0, 1, 2, 2)
