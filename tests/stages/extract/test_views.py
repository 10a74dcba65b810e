"""Feature pictures: one color for one descriptor, in every frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.core.errors import ConfigError
from pipeline.core.grid import PatchGrid
from pipeline.core.records import Features
from stages.extract import view_legend, views

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
        views.CenteredSample().fit()
    pca = views.JointPca(2)
    pca.update(torch.randn(4, 4, 6))
    with pytest.raises(ConfigError, match="no component 5"):
        pca.fit()


def centered(count: int = 5) -> views.CenteredSample:
    sample = views.CenteredSample()
    for data in maps(count):
        sample.update(data + 50)
    sample.fit()
    return sample


def test_a_part_that_all_descriptors_share_changes_nothing() -> None:
    points = torch.cat([data.flatten(1).T for data in maps()])
    torch.testing.assert_close(centered().mean, points.mean(0) + 50, atol=1e-4, rtol=0)
    shifted = Features(maps()[1] + 50, GRID)
    expected = (maps()[1] - points.mean(0)[:, None, None]).norm(dim=0)
    torch.testing.assert_close(centered().norms(shifted), expected, atol=1e-4, rtol=1e-4)
    direct = Features(maps()[1] - points.mean(0)[:, None, None], GRID)
    cosines = views.similarity_map(centered().centered(shifted), views.descriptor_at(direct, (44.5, 24.5)))
    torch.testing.assert_close(
        cosines, views.similarity_map(direct, views.descriptor_at(direct, (44.5, 24.5))), atol=1e-4, rtol=0
    )


def test_norms_share_one_range_and_use_it() -> None:
    sample = centered()
    low, high = sample.norm_range
    norms = torch.stack([sample.norms(Features(data + 50, GRID)) for data in maps()])
    assert (norms < low).float().mean().item() == pytest.approx(0.01, abs=0.01)
    assert (norms > high).float().mean().item() == pytest.approx(0.01, abs=0.01)
    shown = views.stretch(norms, sample.norm_range)
    assert (shown.min().item(), shown.max().item()) == (0, 1)
    assert shown.std() > 0.15


def test_similarities_of_nearly_equal_keys_are_stretched_over_all_colors() -> None:
    """The raw cosines of these cells differ by less than 0.1, as those of keys of a real video do."""
    sample, features = centered(), Features(maps()[0] + 50, GRID)
    raw = views.similarity_map(features, views.descriptor_at(features, (44.5, 24.5)))
    assert raw.max() - raw.min() < 0.1
    middle = sample.centered(features)
    descriptor = views.descriptor_at(middle, (44.5, 24.5))
    shown = views.stretch(views.similarity_map(middle, descriptor), sample.similarity_range(descriptor))
    assert shown[2, 4] == 1
    assert shown.min() < 0.1
    assert shown.std() > 0.15


def test_an_empty_range_shows_no_value_beyond_the_colors() -> None:
    assert views.stretch(torch.tensor([0.0, 1.0, 2.0]), (1.0, 1.0)).tolist() == [0, 0, 1]


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


def test_a_heat_map_has_no_colors_of_the_frame() -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    flat = views.paint_heat(torch.zeros(4, 6), GRID, image, opacity=0)
    assert (flat[..., 0] == flat[..., 2]).all()
    shades = views.heat_colors(np.arange(256, dtype=np.uint8)[None])[0].astype(float)
    assert (np.diff(shades @ [0.299, 0.587, 0.114]) > -1).all()  # brighter with the value


@pytest.mark.parametrize("size", [(200, 300), (720, 1280), (300, 170)])
def test_the_color_bar_lies_in_the_lower_right_with_both_ends(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 128, np.uint8)
    view_legend.color_bar(image, (-0.4, 0.95), "cosine")
    rows, columns = np.nonzero((image != 128).any(axis=2))
    assert rows.max() == size[0] - 1
    assert columns.max() == size[1] - 1
    assert rows.min() > size[0] // 2
    for color in views.heat_colors(np.array([[0, 255]], np.uint8))[0]:
        assert (image == color).all(axis=2).any()


def test_small_frames_have_no_legend() -> None:
    image = np.full((64, 90, 3), 128, np.uint8)
    view_legend.color_bar(image, (0, 1), "cosine")
    view_legend.color_names(image, np.ones((1, 3), np.uint8), ["part 1"])
    assert (image == 128).all()


def test_names_have_their_colors_and_the_clicked_point_is_kept_in_a_corner() -> None:
    image = np.full((360, 640, 3), 128, np.uint8)
    image[100, 600] = (255, 0, 0)
    colors = np.array([(250, 10, 20), (20, 250, 10)], np.uint8)
    named = image.copy()
    view_legend.color_names(named, colors, ["part 1", "part 2"])
    assert all((named == color).all(axis=2).sum() > 20 for color in colors)
    inset = view_legend.clicked_inset(image, (635.0, 5.0))
    assert inset.shape == (90, 90, 3)
    later = np.zeros_like(image)
    view_legend.paste_inset(later, inset)
    assert (later[:90, :90] == inset).all()
    assert not later[90:].any()
    marked = image.copy()
    view_legend.point_mark(marked, (300.0, 200.0))
    assert marked[200, 300].min() > 240
    assert ((marked != image).any(axis=2).nonzero()[1].mean()) == pytest.approx(300, abs=1)
