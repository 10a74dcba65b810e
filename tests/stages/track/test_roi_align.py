from __future__ import annotations

import math
import time

import pytest
import torch
from torch import Tensor

from pipeline.core.grid import PatchGrid
from pipeline.core.torchvision_ops import HAS_COMPILED_OPS
from stages.track.roi_align import RoiAlignSpec, pool_boxes, roi_align, separable_roi_align

SPECS = [
    pytest.param(RoiAlignSpec(output, ratio, aligned), id=f"{output[0]}x{output[1]}-{ratio}-{aligned}")
    for output in ((1, 1), (7, 7), (3, 2))
    for ratio in (0, 1, 2)
    for aligned in (True, False)
]


def naive_bilinear(plane: Tensor, y: float, x: float) -> float:
    """One sample of ``(h, w)`` by the operator's rule: zero past one cell outside, the border cell before that."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    upper = float(plane[top, left]) * (1 - across) + float(plane[top, right]) * across
    lower = float(plane[bottom, left]) * (1 - across) + float(plane[bottom, right]) * across
    return upper * (1 - down) + lower * down


def naive_roi_align(features: Tensor, boxes: Tensor, spec: RoiAlignSpec) -> Tensor:
    """ROIAlign as four nested loops over boxes, bins and samples."""
    result = torch.zeros(len(boxes), features.shape[0], *spec.output_hw)
    shift = 0.5 if spec.aligned else 0.0
    for n, (left, top, right, bottom) in enumerate(boxes.tolist()):
        width, height = right - left, bottom - top
        if not spec.aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        step_y, step_x = height / spec.output_hw[0], width / spec.output_hw[1]
        count_y = spec.sampling_ratio if spec.sampling_ratio > 0 else math.ceil(step_y)
        count_x = spec.sampling_ratio if spec.sampling_ratio > 0 else math.ceil(step_x)
        for row in range(spec.output_hw[0]):
            for column in range(spec.output_hw[1]):
                for sample_y in range(count_y):
                    y = top - shift + (row + (sample_y + 0.5) / count_y) * step_y
                    for sample_x in range(count_x):
                        x = left - shift + (column + (sample_x + 0.5) / count_x) * step_x
                        for channel, plane in enumerate(features):
                            value = naive_bilinear(plane, y, x) / (count_y * count_x)
                            result[n, channel, row, column] += value
    return result


def random_boxes(count: int, height: float, width: float, beyond: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(count, 2, 2, generator=generator) * (1 + 2 * beyond) - beyond
    corners = corners.sort(dim=1).values * torch.tensor([width, height])
    return corners.reshape(count, 4)


@pytest.mark.parametrize("spec", SPECS)
def test_equals_a_naive_loop_also_for_boxes_that_leave_the_map(spec: RoiAlignSpec) -> None:
    features = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0))
    boxes = random_boxes(12, 6, 9, beyond=0.4)
    expected = naive_roi_align(features, boxes, spec)
    torch.testing.assert_close(separable_roi_align(features, boxes, spec), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("ratio", [0, 2])
def test_equals_the_python_version_in_torchvision_inside_the_map(ratio: int) -> None:
    from torchvision.ops.roi_align import _roi_align

    reference = getattr(_roi_align, "__wrapped__", _roi_align)
    features = torch.randn(3, 8, 11, generator=torch.Generator().manual_seed(1))
    boxes = random_boxes(20, 8, 11)
    with_batch = torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1)
    expected = reference(features[None], with_batch, 1.0, 7, 7, ratio, True)
    ours = separable_roi_align(features, boxes, RoiAlignSpec((7, 7), ratio))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.skipif(not HAS_COMPILED_OPS, reason="torchvision's compiled operators do not load here")
def test_the_compiled_operator_gives_the_same_numbers() -> None:
    features = torch.randn(3, 8, 11, generator=torch.Generator().manual_seed(1))
    boxes = random_boxes(20, 8, 11, beyond=0.2)
    for spec in (RoiAlignSpec(), RoiAlignSpec((7, 7), 2), RoiAlignSpec((2, 3), 0, aligned=False)):
        ours = separable_roi_align(features, boxes, spec)
        torch.testing.assert_close(roi_align(features, boxes, spec), ours, atol=1e-5, rtol=0)


def test_a_box_worked_out_by_hand() -> None:
    """Box (0.5, 0.5)-(2.5, 1.5) on value = 10 * row + column: a sample a bin, at columns 0.5, 1.5 and row 0.5."""
    features = (10 * torch.arange(3.0)[:, None] + torch.arange(4.0)[None])[None]
    box = torch.tensor([[0.5, 0.5, 2.5, 1.5]])
    pooled = separable_roi_align(features, box, RoiAlignSpec((1, 2)))
    assert pooled.flatten().tolist() == [5.5, 6.5]


def test_no_boxes_give_an_empty_result() -> None:
    assert separable_roi_align(torch.zeros(4, 3, 3), torch.zeros(0, 4), RoiAlignSpec((7, 7))).shape == (0, 4, 7, 7)


def test_boxes_are_scaled_in_x_and_y_apart() -> None:
    """Cells of 20 x 10 px: a linear ramp pools to the box's center in either axis."""
    grid = PatchGrid((60, 160), (6, 8), (10.0, 20.0), (5.0, 10.0))
    centers = grid.cell_centers().permute(2, 0, 1)
    box = torch.tensor([[30.0, 15.0, 90.0, 45.0]])
    assert pool_boxes(centers, box, grid).flatten().tolist() == pytest.approx([60.0, 30.0], abs=1e-4)


@pytest.mark.parametrize("kind", ["lift", "stride"])
def test_lift_and_strided_grids_pool_the_same_place(kind: str) -> None:
    grid = PatchGrid.from_input((60, 100), (56, 84), patch_px=14, stride_px=7 if kind == "stride" else 14)
    grid = grid.subdivided(2) if kind == "lift" else grid
    centers = grid.cell_centers().permute(2, 0, 1)
    box = torch.tensor([[25.0, 20.0, 65.0, 45.0]])
    assert pool_boxes(centers, box, grid).flatten().tolist() == pytest.approx([45.0, 32.5], abs=1e-3)


def test_a_box_over_the_border_is_not_diluted_with_zeros() -> None:
    grid = PatchGrid((28, 28), (2, 2), (14.0, 14.0), (7.0, 7.0))
    boxes = torch.tensor([[-200.0, -200.0, 14.0, 14.0], [20.0, 20.0, 400.0, 400.0]])
    pooled = pool_boxes(torch.full((1, 2, 2), 3.0), boxes, grid, RoiAlignSpec((2, 2)))
    torch.testing.assert_close(pooled, torch.full((2, 1, 2, 2), 3.0))


def test_weights_leave_the_background_out() -> None:
    grid = PatchGrid((40, 40), (4, 4), (10.0, 10.0), (5.0, 5.0))
    features = torch.zeros(1, 4, 4)
    features[0, :, 2:] = 8.0
    mask = (features[0] > 0).float()
    box = torch.tensor([[0.0, 0.0, 40.0, 40.0]])
    assert pool_boxes(features, box, grid).item() == pytest.approx(4.0)
    assert pool_boxes(features, box, grid, weights=mask).item() == pytest.approx(8.0)
    assert pool_boxes(features, box, grid, weights=mask[None]).item() == pytest.approx(8.0)


def test_without_any_weight_a_bin_is_its_plain_mean() -> None:
    grid = PatchGrid((40, 40), (4, 4), (10.0, 10.0), (5.0, 5.0))
    features = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(2))
    box = torch.tensor([[5.0, 5.0, 35.0, 30.0]])
    spec = RoiAlignSpec((2, 2))
    plain = pool_boxes(features, box, grid, spec)
    torch.testing.assert_close(pool_boxes(features, box, grid, spec, weights=torch.zeros(4, 4)), plain)


def test_a_weight_map_for_each_box_equals_weighting_the_whole_map() -> None:
    generator = torch.Generator().manual_seed(4)
    grid = PatchGrid((120, 160), (12, 16), (10.0, 10.0), (5.0, 5.0))
    features, weights = torch.randn(3, 12, 16, generator=generator), torch.rand(12, 16, generator=generator)
    boxes = random_boxes(15, 120, 160, beyond=0.2)
    spec = RoiAlignSpec((3, 2))
    shared = pool_boxes(features, boxes, grid, spec, weights=weights)
    own = pool_boxes(features, boxes, grid, spec, weights=weights.expand(15, -1, -1))
    torch.testing.assert_close(own, shared, atol=1e-5, rtol=1e-5)


def test_200_boxes_on_a_large_map_take_a_fraction_of_a_second() -> None:
    features = torch.randn(120, 214, 384).permute(2, 0, 1)
    boxes = random_boxes(200, 120, 214)
    separable_roi_align(features, boxes[:5], RoiAlignSpec((7, 7)))
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        separable_roi_align(features, boxes, RoiAlignSpec((7, 7)))
        seconds.append(time.perf_counter() - started)
    # 0.09 s on an idle core; the margin is for a machine that is busy with other tests.
    assert min(seconds) < 1.0
