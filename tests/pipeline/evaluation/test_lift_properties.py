"""CKA, self-similarity and cost against known results."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.evaluation.lift_properties import LinearCka, as_samples, count_macs, self_similarity


def test_cka_of_batches_is_that_of_centered_gram_matrices() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40, 5) + 3, torch.randn(40, 7)
    y[:, :2] += x[:, :2]
    cka = LinearCka()
    for part in (slice(0, 13), slice(13, 40)):
        cka.add(x[part], y[part])
    center = torch.eye(40) - 1 / 40
    gram_x, gram_y = (center @ v @ v.T @ center for v in (x, y))
    expected = (gram_x * gram_y).sum() / (gram_x.norm() * gram_y.norm())
    assert cka.value() == pytest.approx(float(expected), rel=1e-5)


def test_cka_ignores_rotation_scale_and_shift() -> None:
    torch.manual_seed(0)
    x = torch.randn(30, 4)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4))
    cka = LinearCka()
    cka.add(x, 3 * x @ rotation + 7)
    assert cka.value() == pytest.approx(1.0)


def test_cells_are_averaged_onto_the_coarser_grid() -> None:
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert as_samples(maps, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_self_similarity_is_one_at_the_query_and_cosine_elsewhere() -> None:
    torch.manual_seed(0)
    maps = torch.randn(6, 3, 5)
    found = self_similarity(maps, (0.5, 0.5))
    assert found[1, 2] == pytest.approx(1.0)
    assert found[0, 4] == pytest.approx(float(F.cosine_similarity(maps[:, 1, 2], maps[:, 0, 4], dim=0)), abs=1e-6)


def test_multiply_adds_of_a_convolution() -> None:
    layer = torch.nn.Conv2d(3, 8, 3, padding=1)
    assert count_macs(lambda: layer(torch.zeros(1, 3, 10, 10))) == 10 * 10 * 8 * 27
