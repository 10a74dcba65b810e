"""LiFT's start as bilinear interpolation."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pipeline.training.lift_start import find_components, start_as_bilinear
from stages.extract.lift.network import Lift


def _low_rank_features(rank: int, channels: int) -> torch.Tensor:
    torch.manual_seed(0)
    smooth = F.interpolate(torch.randn(6, rank, 5, 5), (14, 14), mode="bicubic")
    return torch.einsum("brhw,rc->bchw", smooth, torch.randn(rank, channels)) + 4 * torch.randn(channels, 1, 1)


def test_the_start_interpolates_like_bilinear_away_from_the_border() -> None:
    features = _low_rank_features(8, 24)
    torch.manual_seed(1)
    model = Lift(24, patch_px=14)
    start_as_bilinear(model, features)
    with torch.no_grad():
        found = model.eval()(torch.randn(6, 3, 196, 196), features)
    expected = F.interpolate(features, scale_factor=2, mode="bilinear")
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    centered = features.mean(dim=(0, 2, 3)).view(1, -1, 1, 1)
    cosine = F.cosine_similarity((found - centered)[inner], (expected - centered)[inner], dim=1)
    assert cosine.mean() > 0.97


def test_names_and_shapes_stay_and_the_same_start_comes_twice() -> None:
    features = _low_rank_features(4, 16)
    states = []
    for _ in range(2):
        torch.manual_seed(1)
        model = Lift(16, patch_px=14)
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        start_as_bilinear(model, features)
        assert {name: value.shape for name, value in model.state_dict().items()} == shapes
        states.append(model.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_components_are_orthonormal_and_span_low_rank_features() -> None:
    features = _low_rank_features(5, 12)
    found = find_components(features, 5)
    torch.testing.assert_close(found.basis.T @ found.basis, torch.eye(5), atol=1e-4, rtol=0)
    centered = features - found.mean.view(1, -1, 1, 1)
    projected = torch.einsum("bchw,ck,dk->bdhw", centered, found.basis, found.basis)
    torch.testing.assert_close(projected, centered, atol=1e-3, rtol=1e-3)
    assert torch.all(found.deviation[:-1] >= found.deviation[1:])
