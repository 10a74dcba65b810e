"""The figures' computations against naive ones, and the page's pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.core.errors import ConfigError
from pipeline.local.figure_material import FigureSettings, Material, parse_layers
from pipeline.local.figure_plots import blocks, picture_grid
from pipeline.local.figures import FIGURES, choose_figures
from pipeline.local.figures_lift import cka_between, cka_matrix
from pipeline.local.figures_maps import cluster, renumber
from pipeline.local.page import picture_address
from pipeline.local.patch_features import BackboneName
from tests.pipeline.local.layouts import picture

TINY = BackboneName("vit_tiny_patch16_224", "random")


def centered_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA from centered Gram matrices (Kornblith et al. 2019, equation 2)."""
    x, y = x - x.mean(0), y - y.mean(0)
    k, m = x @ x.T, y @ y.T
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def test_cka_of_maps_is_that_of_gram_matrices_on_the_coarser_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    small = [torch.randn(5, 3, 4, generator=generator) for _ in range(2)]
    large = [torch.randn(7, 6, 8, generator=generator) for _ in range(2)]
    pooled = [m.reshape(7, 3, 2, 4, 2).mean(dim=(2, 4)) for m in large]

    def rows(maps: list[torch.Tensor]) -> np.ndarray:
        return np.concatenate([m.flatten(1).T.double().numpy() for m in maps])

    expected = centered_cka(rows(small), rows(pooled))
    assert cka_between(small, large) == pytest.approx(expected, rel=1e-5)
    matrix = cka_matrix([small, large, [2 * m + 1 for m in small]])
    assert np.allclose(matrix, matrix.T)
    assert np.allclose(np.diag(matrix), 1)
    assert matrix[0, 1] == pytest.approx(expected, rel=1e-5)
    assert matrix[0, 2] == pytest.approx(1, abs=1e-5)  # a scale and a shift change nothing


def test_clusters_are_found_and_keep_their_numbers() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 90)
    rows = (np.eye(8)[truth] + 0.05 * rng.normal(size=(90, 8))).astype(np.float32)
    labels = cluster([rows[:40], rows[40:]], 3)
    assert np.array_equal(renumber(labels, truth, 3), truth)


def test_blocks_repeat_cells_and_keep_colors() -> None:
    colors = torch.tensor([[[0.0, 1.0]], [[0.5, 0.0]], [[2.0, 0.0]]])
    shown = blocks(colors, side_px=6)
    assert shown.shape == (3, 6, 3)
    assert (shown[:, :3] == [0, 128, 255]).all()
    assert (shown[:, 3:] == [255, 0, 0]).all()


def test_a_grid_has_a_panel_per_picture_and_names_rows() -> None:
    figure = picture_grid([("first", [picture(0)] * 2), ("second", [picture(1)] * 2)], ["a", "b"])
    assert len(figure.axes) == 4
    assert [axes.get_title() for axes in figure.axes[:2]] == ["a", "b"]
    assert figure.axes[2].get_ylabel() == "second"


@pytest.mark.parametrize(("noise", "kind"), [(60, "jpeg"), (0, "png")])
def test_pictures_are_embedded_in_the_smaller_format(noise: int, kind: str) -> None:
    values = np.full((64, 64, 3), 128) + np.random.default_rng(0).integers(-noise, noise + 1, (64, 64, 3))
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(buffer, format="PNG")
    assert picture_address(buffer.getvalue()).startswith(f"data:image/{kind};base64,")


def test_layers_are_spread_up_to_the_last_or_as_given() -> None:
    named = [("one", picture(0))]
    assert Material(named, TINY, FigureSettings(device="cpu")).layers == (2, 5, 8, 11)
    chosen = Material(named, TINY, FigureSettings(layers=(-1, 3), device="cpu"))
    assert chosen.layers == (3, 11)
    assert not chosen.has_lift
    with pytest.raises(ConfigError, match="out of range"):
        Material(named, TINY, FigureSettings(layers=(12,), device="cpu"))
    with pytest.raises(ConfigError, match="--layers 1,x"):
        parse_layers("1,x")


def test_repairing_leaves_the_shared_backbone_as_it_was() -> None:
    material = Material([("one", picture(0))], TINY, FigureSettings(layers=(0,), short_side=64, device="cpu"))
    before = material.maps("token@11")[0]
    _, report = material.repaired("token@11")
    assert set(report) >= {"smoothed_tokens", "by_block"}
    assert material.model.token_hook is None
    assert torch.equal(material.at_scale(64, ["token@11"])["token@11"][0], before)


def test_figures_are_chosen_by_name_in_the_order_of_the_page() -> None:
    assert choose_figures("") == list(FIGURES)
    assert choose_figures("cka,pca") == ["pca", "cka"]
    with pytest.raises(ConfigError, match="no figure 'nothing'; choose from pca"):
        choose_figures("pca,nothing")
