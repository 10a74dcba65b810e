"""Foreground cues on scenes whose foreground is known, and the cut against a dense eigensolver."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stages.extract.saliency import (
    background_at_border,
    first_component_saliency,
    normalized_cut_saliency,
)


def scene(height: int = 12, width: int = 18, channels: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of a disc of one kind on a ground of another, with noise; and the disc."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    disc = (y - height / 2) ** 2 + (x - width / 2.5) ** 2 < (height / 4) ** 2
    kinds = torch.randn(2, channels, generator=generator)
    features = kinds[disc.long()] + 0.3 * torch.randn(height, width, channels, generator=generator)
    return features.permute(2, 0, 1)[None], disc


@pytest.mark.parametrize("cue", [first_component_saliency, normalized_cut_saliency])
@pytest.mark.parametrize("seed", range(4))
def test_the_disc_is_foreground(cue: Callable[[Tensor], Tensor], seed: int) -> None:
    features, disc = scene(seed=seed)
    saliency = cue(features)[0]
    assert saliency.min() == 0
    assert saliency.max() == 1
    assert torch.equal(saliency > 0.5, disc)


def test_large_grids_are_cut_on_pooled_cells() -> None:
    features, disc = scene(48, 72)
    found = normalized_cut_saliency(features)[0] > 0.5
    assert found.shape == disc.shape
    assert (found & disc).sum() / (found | disc).sum() > 0.85


def test_the_cut_is_the_second_generalized_eigenvector() -> None:
    features, _ = scene(6, 7)
    unit = torch.nn.functional.normalize(features.flatten(2)[0].T.double(), dim=1)
    weights = (unit @ unit.T).clamp(min=0.01) ** 5
    degree = torch.diag(weights.sum(1))
    inverse_root = torch.diag(weights.sum(1) ** -0.5)
    _, vectors = torch.linalg.eigh(inverse_root @ (degree - weights) @ inverse_root)
    second = (inverse_root @ vectors[:, 1]).reshape(1, 6, 7)
    expected = background_at_border(second).float()
    torch.testing.assert_close(normalized_cut_saliency(features), expected, atol=2e-2, rtol=0)


def test_of_two_cuts_the_one_that_leaves_the_border_free_is_taken() -> None:
    # Sky over ground is the strongest cut, the disc the second.
    generator = torch.Generator().manual_seed(2)
    features, disc = scene(16, 18, seed=3)
    sky = torch.randn(32, generator=generator)
    features[0, :, :8][:, ~disc[:8]] += 1.2 * sky[:, None]
    found = normalized_cut_saliency(features)[0] > 0.5
    assert (found & disc).sum() / (found | disc).sum() > 0.6


@pytest.mark.parametrize("cue", [first_component_saliency, normalized_cut_saliency])
def test_images_of_a_batch_are_independent(cue: Callable[[Tensor], Tensor]) -> None:
    batch = torch.cat([scene(seed=seed)[0] for seed in range(3)])
    together = cue(batch)
    alone = torch.cat([cue(batch[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("cue", [first_component_saliency, normalized_cut_saliency])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_image_has_a_finite_map(cue: Callable[[Tensor], Tensor], value: float) -> None:
    found = cue(torch.full((1, 8, 5, 6), value))
    assert torch.isfinite(found).all()
    assert found.shape == (1, 5, 6)
