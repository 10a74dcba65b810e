from __future__ import annotations

import pytest
import torch

from pipeline.core.normalized_cut import leading_eigenvectors
from pipeline.core.small_eigen import jacobi_eigh


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_rotations_find_what_lapack_finds(size: int) -> None:
    values = torch.randn(5, size, size, generator=torch.Generator().manual_seed(0))
    matrices = values @ values.mT
    matrices[0] = torch.eye(size)  # nothing to rotate
    matrices[1] = 0
    matrices[2] = torch.eye(size) + 1e-3 * matrices[2]  # eigenvalues that are nearly equal
    found, vectors = jacobi_eigh(matrices)
    torch.testing.assert_close(found, torch.linalg.eigvalsh(matrices), rtol=1e-4, atol=1e-4)
    rebuilt = vectors @ torch.diag_embed(found) @ vectors.mT
    torch.testing.assert_close(rebuilt, matrices, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(size).expand(5, -1, -1), rtol=1e-4, atol=1e-4)


def test_iteration_finds_the_leading_direction() -> None:
    points = torch.randn(2, 60, 12, generator=torch.Generator().manual_seed(0))
    points[..., 3] *= 3
    covariances = points.mT @ points
    found = leading_eigenvectors(covariances, 4, 40)[..., 0]
    want = torch.linalg.eigh(covariances)[1][..., -1]
    torch.testing.assert_close((found * want).sum(-1).abs(), torch.ones(2), rtol=1e-4, atol=1e-4)
