"""The eigenvectors of a normalized cut, by subspace iteration.

Source: Shi and Malik 2000, "Normalized Cuts and Image Segmentation", section 2.1: the relaxed cut is the
generalized eigenvector of the second smallest eigenvalue of ``(D - W) v = lambda D v``.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.small_eigen import small_eigh

_SEED = 0


def cut_eigenvectors(weights: Tensor, num_vectors: int, num_steps: int) -> Tensor:
    """Generalized eigenvectors of ``(D - W) v = lambda D v`` from the second smallest eigenvalue on.

    They are ``D^-1/2`` times the largest eigenvectors of ``D^-1/2 W D^-1/2``, whose first is known in closed form,
    ``D^1/2 1``, and is projected out of a subspace iteration. Nothing waits for the device.

    Args:
        weights: ``(B, N, N)``, symmetric and positive, floating point; overwritten.
        num_vectors: Vectors iterated together and returned, at most N. The last of them converge last: ask for a
            few more than needed.
        num_steps: Iterations.

    Returns:
        ``(B, N, num_vectors)`` by rising eigenvalue, in the dtype of ``weights``.
    """
    degree = weights.sum(dim=-1, keepdim=True)
    root = degree.rsqrt()
    matrix = weights.mul_(root).mul_(root.transpose(1, 2))
    first = F.normalize(degree.sqrt(), dim=1)
    start = _start(weights.shape[1], num_vectors, weights.dtype, weights.device)
    vectors = start.expand(len(weights), -1, -1)
    for _ in range(num_steps):
        vectors = _times(matrix, vectors)
        vectors = _orthonormal(vectors - first @ (first.transpose(1, 2) @ vectors))
    _, rotation = small_eigh(vectors.transpose(1, 2) @ _times(matrix, vectors))
    found: Tensor = (vectors @ rotation.flip(-1)) * root
    return found


def leading_eigenvectors(matrices: Tensor, num_vectors: int, num_steps: int) -> Tensor:
    """The eigenvectors of the largest eigenvalues by falling eigenvalue, by subspace iteration without a wait.

    Args:
        matrices: ``(B, N, N)``, symmetric and positive semidefinite.
        num_vectors: Vectors iterated together and returned; the last of them converge last.
        num_steps: Iterations.

    Returns:
        ``(B, N, min(num_vectors, N))``.
    """
    count = min(num_vectors, matrices.shape[1])
    # Only directions matter; scaled so that products stay in range.
    scaled = matrices / matrices.diagonal(dim1=1, dim2=2).sum(dim=1).clamp(min=1e-30)[:, None, None]
    vectors = _start(matrices.shape[1], count, matrices.dtype, matrices.device).expand(len(matrices), -1, -1)
    for _ in range(num_steps):
        vectors = _orthonormal(_times(scaled, vectors))
    _, rotation = small_eigh(vectors.transpose(1, 2) @ _times(scaled, vectors))
    found: Tensor = vectors @ rotation.flip(-1)
    return found


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _start(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random vectors to start from, the same on every device."""
    return _made_start(rows, columns, dtype, device)


def _times(symmetric: Tensor, vectors: Tensor) -> Tensor:
    """``symmetric @ vectors`` for few vectors; from the left, which a CPU's product does six times as fast."""
    return (vectors.transpose(1, 2) @ symmetric).transpose(1, 2)


@lru_cache(maxsize=8)
def _made_start(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Made and uploaded once per size."""
    with torch.inference_mode(False):
        generator = torch.Generator().manual_seed(_SEED)
        return torch.randn(rows, columns, generator=generator).to(device, dtype)


def _orthonormal(vectors: Tensor) -> Tensor:
    """Orthonormal columns by a Cholesky factor: no Householder sweep, no wait for the device."""
    gram = vectors.transpose(1, 2) @ vectors
    scale = gram.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    ridge = 1e-6 * scale * torch.eye(gram.shape[-1], device=gram.device, dtype=gram.dtype)
    factor, _ = torch.linalg.cholesky_ex(gram + ridge)
    found: Tensor = torch.linalg.solve_triangular(factor.mT, vectors, upper=True, left=False)
    return found
