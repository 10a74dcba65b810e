"""Position embeddings against loops that read four taps an axis by the written formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stages.extract.backbone.position import resize_position_embedding


def cubic(distance: float, a: float) -> float:
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def weights_along(out: int, source: int, factor: float, *, antialias: bool) -> Tensor:
    """(out, source) weights; ``factor`` is output over input, antialiasing widens the kernel when shrinking."""
    support = max(1.0, 1 / factor) if antialias else 1.0
    # PyTorch's antialiasing kernel has a = -0.5, its plain bicubic one a = -0.75.
    a = -0.5 if antialias else -0.75
    matrix = torch.zeros(out, source, dtype=torch.float64)
    for i in range(out):
        center = (i + 0.5) / factor - 0.5
        if antialias:
            taps = [j for j in range(source) if abs(j - center) < 2 * support]
            raw = [cubic((j - center) / support, a) for j in taps]
            # Filters that reach over the border are cut and normalized again.
            for j, value in zip(taps, raw, strict=True):
                matrix[i, j] += value / sum(raw)
        else:
            first = math.floor(center) - 1
            for j in range(first, first + 4):
                matrix[i, min(max(j, 0), source - 1)] += cubic(j - center, a)
    return matrix


def naive(embedding: Tensor, grid_hw: tuple[int, int], convention: str) -> Tensor:
    side = math.isqrt(embedding.shape[1] - 1)
    patches = embedding[0, 1:].double().reshape(side, side, -1)
    offset = 0.1 if convention == "dino" else 0.0
    rows, columns = (weights_along(n, side, (n + offset) / side, antialias=convention == "timm") for n in grid_hw)
    resized = torch.einsum("im,jn,mnc->ijc", rows, columns, patches)
    return torch.cat([embedding[0, :1].double(), resized.reshape(-1, patches.shape[-1])])[None]


@pytest.mark.parametrize("convention", ["dino", "timm"])
@pytest.mark.parametrize("grid_hw", [(9, 13), (3, 5), (6, 11), (4, 9)])
def test_resizing_follows_the_written_formula(convention: str, grid_hw: tuple[int, int]) -> None:
    embedding = torch.randn(1, 37, 4, generator=torch.Generator().manual_seed(0))
    found = resize_position_embedding(
        embedding,
        grid_hw,
        num_prefix=1,
        square_input=False,
        convention=convention,  # type: ignore[arg-type]
    )
    expected = naive(embedding, grid_hw, convention)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=0)


def test_dino_samples_are_placed_by_the_scale_factor_with_its_offset() -> None:
    # 28 to 60 rows: row 0 reads at 0.5 * 28 / 60.1 - 0.5 = -0.2670549; by the output's size it would be
    # -0.2666667, which shows in the last digits.
    embedding = torch.randn(1, 1 + 28 * 28, 1, generator=torch.Generator().manual_seed(0))
    found = resize_position_embedding(embedding, (60, 52), num_prefix=1, square_input=False, convention="dino")
    by_factor = naive(embedding, (60, 52), "dino")
    by_size = naive(embedding, (60, 52), "plain size")
    torch.testing.assert_close(found.double(), by_factor, atol=2e-5, rtol=0)
    assert (found - by_size).abs().max() > 1e-3


def test_the_pretrained_grid_is_left_alone_only_for_square_inputs() -> None:
    embedding = torch.randn(1, 17, 3)
    kept = resize_position_embedding(embedding, (4, 4), num_prefix=1, square_input=True, convention="dino")
    assert kept is embedding
    other = resize_position_embedding(embedding, (2, 8), num_prefix=1, square_input=False, convention="dino")
    assert other.shape == (1, 17, 3)
    assert not torch.equal(other, embedding)


@pytest.mark.parametrize("convention", ["dino", "timm", "sinder"])
def test_the_cls_entry_is_never_touched(convention: str) -> None:
    embedding = torch.randn(1, 17, 3)
    found = resize_position_embedding(
        embedding,
        (7, 5),
        num_prefix=1,
        square_input=False,
        convention=convention,  # type: ignore[arg-type]
    )
    assert torch.equal(found[:, :1], embedding[:, :1])


@pytest.mark.parametrize("side", [14, 28, 37])
def test_every_grid_has_the_size_asked_for(side: int) -> None:
    # floor(M * (h + 0.1) / M) must not fall below h by rounding.
    embedding = torch.zeros(1, 1 + side * side, 1)
    for cells in range(1, 130):
        resize_position_embedding(
            embedding, (cells, cells + 1), num_prefix=1, square_input=False, convention="dino"
        )
