from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.core.errors import ConfigError
from pipeline.core.grid import PatchGrid

CASES = [
    (patch, stride, input_hw, image_hw)
    for patch, (input_hw, image_hw) in itertools.product(
        (8, 14, 16), [((112, 224), (112, 224)), ((113, 131), (480, 854)), ((56, 56), (33, 71))]
    )
    for stride in range(1, patch + 1)
    if patch % stride == 0
]


@pytest.mark.parametrize(("patch", "stride", "input_hw", "image_hw"), CASES)
def test_centres_are_those_of_the_patches_a_convolution_reads(
    patch: int, stride: int, input_hw: tuple[int, int], image_hw: tuple[int, int]
) -> None:
    """Convolve the coordinate maps with a box kernel: its output is the mean position of each patch."""
    grid = PatchGrid.from_input(image_hw, input_hw, patch_px=patch, stride_px=stride)
    rows = (torch.arange(input_hw[0], dtype=torch.float64) + 0.5) * image_hw[0] / input_hw[0]
    columns = (torch.arange(input_hw[1], dtype=torch.float64) + 0.5) * image_hw[1] / input_hw[1]
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    kernel = torch.full((1, 1, patch, patch), 1 / patch**2, dtype=torch.float64)
    centers = torch.stack([F.conv2d(c[None, None], kernel, stride=stride)[0, 0] for c in (x, y)], dim=-1)
    assert grid.grid_hw == tuple(centers.shape[:2])
    torch.testing.assert_close(grid.cell_centers().double(), centers, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("patch", "stride"), [(14, 14), (14, 7), (16, 8), (8, 2)])
def test_doubling_splits_every_cell_around_its_own_center(patch: int, stride: int) -> None:
    grid = PatchGrid.from_input((112, 224), (112, 224), patch_px=patch, stride_px=stride)
    fine = grid.subdivided(2)
    assert fine.grid_hw == (grid.grid_hw[0] * 2, grid.grid_hw[1] * 2)
    blocks = fine.cell_centers().reshape(grid.grid_hw[0], 2, grid.grid_hw[1], 2, 2).mean(dim=(1, 3))
    torch.testing.assert_close(blocks, grid.cell_centers())


def test_pixels_and_cells_are_inverse_and_centres_lie_at_half() -> None:
    grid = PatchGrid.from_input((480, 854), (476, 840), patch_px=14, stride_px=7)
    points = torch.rand(50, 2, dtype=torch.float64) * torch.tensor([854.0, 480.0])
    torch.testing.assert_close(grid.cells_to_pixels(grid.pixels_to_cells(points)), points)
    centers = grid.pixels_to_cells(grid.cell_centers().double())
    assert torch.allclose(centers[3, 5], torch.tensor([5.5, 3.5], dtype=torch.float64), atol=1e-4)


def test_nearest_cells_have_the_nearest_centres_and_stay_in_the_grid() -> None:
    grid = PatchGrid.from_input((60, 90), (70, 98), patch_px=14, stride_px=7)
    points = torch.rand(200, 2) * torch.tensor([90.0, 60.0])
    centers = grid.cell_centers()
    flat = torch.cdist(points, centers.reshape(-1, 2)).argmin(dim=1)
    columns = grid.grid_hw[1]
    expected = torch.stack([flat % columns, flat // columns], dim=1)
    assert (grid.nearest_cells(points) == expected).all()
    far = grid.nearest_cells(torch.tensor([[-1e4, -1e4], [1e4, 1e4]]))
    assert far.tolist() == [[0, 0], [columns - 1, grid.grid_hw[0] - 1]]


def test_boxes_scale_in_x_and_y_on_their_own() -> None:
    grid = PatchGrid.from_input((100, 400), (50, 100), patch_px=10, stride_px=10)
    box = grid.boxes_to_cells(torch.tensor([[40.0, 20.0, 400.0, 100.0]]))
    torch.testing.assert_close(box, torch.tensor([[1.0, 1.0, 10.0, 5.0]]))


def test_upsampling_is_plain_bilinear_where_the_cells_tile_the_frame() -> None:
    grid = PatchGrid.from_input((56, 84), (56, 84), patch_px=14, stride_px=14)
    assert grid.fills_image
    maps = torch.rand(2, 4, 6)
    expected = F.interpolate(maps[None], size=(56, 84), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(grid.upsample(maps), expected)


def test_upsampling_a_strided_grid_is_registered_at_the_token_centres() -> None:
    """A map that is linear in x, sampled at the centers, comes back linear between the outer centers."""
    grid = PatchGrid.from_input((60, 90), (60, 90), patch_px=16, stride_px=4)
    assert not grid.fills_image
    linear = grid.cell_centers()[..., 0][None]
    back = grid.upsample(linear)[0]
    expected = torch.arange(90) + 0.5
    torch.testing.assert_close(back[30, 8:80], expected[8:80], atol=1e-3, rtol=0)


def test_nearest_samples_are_the_pixels_under_the_centres() -> None:
    grid = PatchGrid.from_input((28, 28), (28, 28), patch_px=14, stride_px=14)
    image = torch.arange(28 * 28).reshape(28, 28)
    assert grid.sample_nearest(image).tolist() == [[7 * 28 + 7, 7 * 28 + 21], [21 * 28 + 7, 21 * 28 + 21]]


@pytest.mark.parametrize("image_hw", [(56, 84), (50, 77)])
def test_area_samples_equal_a_fine_numerical_mean(image_hw: tuple[int, int]) -> None:
    grid = PatchGrid.from_input(image_hw, (56, 84), patch_px=14, stride_px=14)
    image = torch.rand(1, *image_hw)
    fine = image[0].numpy().repeat(grid.grid_hw[0], axis=0).repeat(grid.grid_hw[1], axis=1)
    blocks = fine.reshape(grid.grid_hw[0], image_hw[0], grid.grid_hw[1], image_hw[1]).mean(axis=(1, 3))
    np.testing.assert_allclose(grid.sample_area(image)[0].numpy(), blocks, atol=1e-5)


def test_the_area_of_cells_that_reach_over_the_border_is_their_part_inside() -> None:
    grid = PatchGrid(image_hw=(10, 10), grid_hw=(1, 2), stride_px=(10.0, 8.0), offset_px=(5.0, 4.0))
    image = torch.zeros(1, 10, 10)
    image[..., 8:] = 1.0
    torch.testing.assert_close(grid.sample_area(image), torch.tensor([[[0.0, 1.0]]]))


@pytest.mark.parametrize(
    ("input_hw", "patch", "stride", "message"), [((56, 56), 14, 5, r"\[1, 2, 7, 14\]"), ((10, 56), 14, 7, "patch")]
)
def test_bad_geometry_names_the_valid_values(
    input_hw: tuple[int, int], patch: int, stride: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        PatchGrid.from_input((100, 100), input_hw, patch_px=patch, stride_px=stride)


def test_a_subdivided_grid_lies_on_the_same_pixels() -> None:
    strided = PatchGrid((100, 100), (9, 9), (10.0, 10.0), (10.0, 10.0))
    fine = strided.subdivided(2)
    centers = fine.cell_centers().reshape(9, 2, 9, 2, 2).mean(dim=(1, 3))
    torch.testing.assert_close(centers, strided.cell_centers())


@pytest.mark.parametrize("stride", [14, 7])
def test_cell_means_are_those_of_sample_area(stride: int) -> None:
    grid = PatchGrid.from_input((90, 130), (84, 126), patch_px=14, stride_px=stride)
    maps = np.random.default_rng(0).random((3, 60, 88)).astype(np.float32)
    expected = grid.sample_area(torch.from_numpy(maps)).numpy()
    np.testing.assert_allclose(grid.cell_means(maps), expected, atol=1e-5)


def test_upsampling_on_the_cpu_equals_bilinear_interpolation_by_torch() -> None:
    grid = PatchGrid.covering((60, 84), (5, 7))
    maps = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    want = torch.nn.functional.interpolate(maps[None], size=(60, 84), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(grid.upsample(maps), want, atol=1e-5, rtol=0)
