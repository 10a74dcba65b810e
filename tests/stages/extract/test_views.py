"""Feature pictures: one color for one descriptor, in every frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.core.errors import ConfigError
from pipeline.core.grid import PatchGrid
from pipeline.core.records import Features
from stages.extract import views

GRID = PatchGrid.from_input((40, 60), (40, 60), patch_px=10, stride_px=10)


def maps(count: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(16, 16, generator=generator) * torch.linspace(3, 0.1, 16)
    return [(mixing @ torch.randn(16, 24, generator=generator) + 1).reshape(16, 4, 6) for _ in range(count)]


def fitted(first: int = 0) -> views.JointPca:
    pca = views.JointPca(first)
    for data in maps():
        pca.update(data)
    pca.fit()
    return pca


@pytest.mark.parametrize("first", [0, 1])
def test_the_basis_is_that_of_all_frames_together(first: int) -> None:
    points = torch.cat([data.flatten(1).T for data in maps()])
    _, _, components = torch.linalg.svd((points - points.mean(0)).double(), full_matrices=False)
    expected = components[first : first + 3].T.float()
    cosines = (fitted(first).basis * expected).sum(0).abs()
    torch.testing.assert_close(cosines, torch.ones(3), atol=1e-4, rtol=0)


def test_a_descriptor_has_one_color_whatever_its_frame() -> None:
    pca = fitted()
    first, other = maps()[0], maps()[1].clone()
    other[:, 2, 3] = first[:, 1, 1]
    torch.testing.assert_close(pca.colors(first)[:, 1, 1], pca.colors(other)[:, 2, 3])


def test_colors_are_in_range_and_use_it() -> None:
    colors = torch.stack([fitted().colors(data) for data in maps()])
    assert colors.min() == 0
    assert colors.max() == 1
    assert colors.std() > 0.15


def test_too_few_channels_or_frames_are_errors() -> None:
    with pytest.raises(ConfigError, match="no frame"):
        views.JointPca().fit()
    with pytest.raises(ConfigError, match="no frame"):
        views.NormRange().fit()
    pca = views.JointPca(2)
    pca.update(torch.randn(4, 4, 6))
    with pytest.raises(ConfigError, match="no component 5"):
        pca.fit()


def test_norms_share_one_range() -> None:
    norms = views.NormRange()
    for scale in (1.0, 4.0):
        norms.update(torch.ones(9, 2, 2) * scale)
    norms.fit()
    assert set(norms.values(torch.ones(9, 2, 2)).flatten().tolist()) == {0.25}
    assert set(norms.values(torch.ones(9, 2, 2) * 8).flatten().tolist()) == {1.0}


def test_the_descriptor_at_a_cell_center_is_that_cells() -> None:
    features = Features(maps()[0], GRID)
    # The center of cell (2, 4) is at 45, 25 in continuous coordinates, between pixels 44 and 45.
    found = views.descriptor_at(features, (44.5, 24.5))
    expected = torch.nn.functional.normalize(features.data[:, 2, 4], dim=0)
    torch.testing.assert_close(found, expected)
    similarity = views.similarity_map(features, found)
    assert similarity.argmax() == 2 * 6 + 4
    assert similarity.max().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("xy", [(-1.0, 3.0), (60.0, 3.0), (3.0, 40.0)])
def test_a_point_outside_says_what_is_inside(xy: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="valid: x from 0 to 59, y from 0 to 39"):
        views.descriptor_at(Features(maps()[0], GRID), xy)


def test_pictures_have_the_frames_size() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    assert views.paint_heat(torch.rand(4, 6), GRID, image).shape == (40, 60, 3)
    picture = views.paint_colors(torch.ones(3, 4, 6), GRID)
    assert picture.shape == (40, 60, 3)
    assert picture.min() == 255
