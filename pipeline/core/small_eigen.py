"""Eigenvectors of small symmetric matrices on a card, without a wait.

``torch.linalg.eigh`` asks the card whether it has converged, so the host waits for all work before it. A fixed
number of Jacobi rotations needs no answer, and for a few rows is as exact (Golub and Van Loan, Matrix
Computations, section 8.5: cyclic Jacobi converges quadratically; parallel order, section 8.5.5).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

_SWEEPS = 6


class _Round(NamedTuple):
    """Rotations of disjoint pairs: each row's partner; -1 for the first of a pair, 1 for the second, else 0."""

    partner: Tensor
    sign: Tensor


def small_eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(B, n)``, ascending, and eigenvectors ``(B, n, n)`` of symmetric ``(B, n, n)``, n up to 8.

    On the CPU ``torch.linalg.eigh``, elsewhere Jacobi's method. The signs of eigenvectors are arbitrary in both.
    """
    if matrices.is_cpu:
        values, vectors = torch.linalg.eigh(matrices)
        return values, vectors
    return jacobi_eigh(matrices)


def jacobi_eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`small_eigh` by Jacobi rotations, on any device."""
    size = matrices.shape[-1]
    vectors = torch.eye(size, dtype=matrices.dtype, device=matrices.device).expand_as(matrices)
    rounds = _rounds(size, matrices.dtype, matrices.device)
    turns = [_Round(partner.long(), sign) for partner, sign in rounds.unbind()]
    for _ in range(_SWEEPS):
        for turn in turns:
            cosine, sine = _rotations(matrices, turn)
            matrices = _rotated(_rotated(matrices, turn.partner, cosine, sine).mT, turn.partner, cosine, sine).mT
            vectors = _rotated(vectors, turn.partner, cosine, sine)
    values = matrices.diagonal(dim1=-2, dim2=-1)
    order = values.argsort(dim=-1)
    return values.gather(-1, order), vectors.gather(-1, order[..., None, :].expand_as(vectors))


def _rotated(values: Tensor, partner: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    return values * cosine[..., None, :] + values.index_select(-1, partner) * sine[..., None, :]


def _rotations(matrices: Tensor, turn: _Round) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine ``(B, n)`` that clear the elements between partners."""
    diagonal = matrices.diagonal(dim1=-2, dim2=-1)
    off = matrices.index_select(-1, turn.partner).diagonal(dim1=-2, dim2=-1)
    # Rounding leaves the two elements of a pair different; one rotation must come of them.
    off = (off + off.index_select(-1, turn.partner)) / 2
    nothing = (off == 0) | (turn.sign == 0)
    apart = (diagonal - diagonal.index_select(-1, turn.partner)) * turn.sign  # second minus first
    ratio = apart / torch.where(nothing, torch.ones_like(off), 2 * off)
    direction = torch.where(ratio >= 0, torch.ones_like(ratio), -torch.ones_like(ratio))
    tangent = torch.where(nothing, torch.zeros_like(off), direction / (ratio.abs() + (ratio * ratio + 1).sqrt()))
    cosine = (tangent * tangent + 1).rsqrt()
    return cosine, tangent * cosine * turn.sign


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _rounds(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Every pair once, in rounds of disjoint pairs, ``(rounds, 2, size)``: see :class:`_Round`."""
    return _made_rounds(size, dtype, device)


@lru_cache(maxsize=16)
def _made_rounds(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A round-robin tournament; made and uploaded once per size."""
    players = [*range(size), *[-1] * (size % 2)]
    rounds = []
    for _ in range(max(len(players) - 1, 0)):
        partner, sign = [float(place) for place in range(size)], [0.0] * size
        for one, other in zip(players, reversed(players), strict=True):
            if -1 not in (one, other) and one != other:
                partner[one], sign[one] = other, -1.0 if one < other else 1.0
        rounds.append([partner, sign])
        players.insert(1, players.pop())
    with torch.inference_mode(False):
        return torch.tensor(rounds, dtype=dtype).view(-1, 2, size).to(device)
