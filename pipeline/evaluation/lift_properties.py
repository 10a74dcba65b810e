"""Properties of a LiFT besides its tasks: agreement across scales (CKA), self-similarity, size and cost.

Suri et al., LiFT, ECCV 2024, section 5: lifted features of a small image are closer to the features of the large
one, and their self-similarity maps follow the objects' outlines. Linear CKA: Kornblith et al., Similarity of
Neural Network Representations Revisited, ICML 2019, section 3 (https://arxiv.org/abs/1905.00414).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


@dataclass
class LinearCka:
    """Linear CKA of two representations of the same samples, gathered batch by batch.

    Only sums and products are kept, so any number of samples fits.
    """

    count: int = 0
    _sums: list[Tensor] = field(default_factory=list)
    _products: list[Tensor] = field(default_factory=list)

    def add(self, first: Tensor, second: Tensor) -> None:
        """Take in samples.

        Args:
            first: ``(n, C)``.
            second: ``(n, D)``, the same samples.
        """
        x, y = first.to(torch.float64), second.to(torch.float64)
        sums = [x.sum(0), y.sum(0)]
        products = [x.T @ x, y.T @ y, x.T @ y]
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)] if self.count else sums
        self._products = [a + b for a, b in zip(self._products, products, strict=True)] if self.count else products
        self.count += x.shape[0]

    def value(self) -> float:
        """CKA in [0, 1]; 1 for representations that differ by a rotation, a uniform scale and a shift."""
        sum_x, sum_y = self._sums
        xx, yy, xy = self._products
        xx = xx - torch.outer(sum_x, sum_x) / self.count
        yy = yy - torch.outer(sum_y, sum_y) / self.count
        xy = xy - torch.outer(sum_x, sum_y) / self.count
        return float(xy.square().sum() / (xx.norm() * yy.norm()))


def as_samples(maps: Tensor, grid_hw: tuple[int, int] | None = None) -> Tensor:
    """Cells of ``(B, C, h, w)`` as ``(n, C)``, averaged onto a coarser grid first where one is given."""
    if grid_hw is not None and tuple(maps.shape[-2:]) != grid_hw:
        maps = F.adaptive_avg_pool2d(maps, grid_hw)
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def self_similarity(maps: Tensor, position: tuple[float, float]) -> Tensor:
    """Cosine similarity of every cell with the one at a position.

    Args:
        maps: ``(C, h, w)``.
        position: Down and right as fractions of the map.

    Returns:
        ``(h, w)`` in [-1, 1].

    >>> self_similarity(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), (0.0, 0.9)).tolist()
    [[0.0, 1.0]]
    """
    row, column = (min(int(p * n), n - 1) for p, n in zip(position, maps.shape[1:], strict=True))
    unit = F.normalize(maps, dim=0)
    return torch.einsum("chw,c->hw", unit, unit[:, row, column])


def count_macs(call: Callable[[], object]) -> float:
    """Multiply-adds of the matrix products, convolutions and attention inside a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops()) / 2


def median_seconds(call: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    """Median duration of a call after one to warm up."""
    call()
    durations: list[float] = []
    for _ in range(repeats):
        begin = clock()
        call()
        durations.append(clock() - begin)
    return sorted(durations)[len(durations) // 2]


def pairs_of(names: Sequence[int]) -> list[tuple[int, int]]:
    """All pairs of scales, the smaller one first.

    >>> pairs_of([448, 112, 224])
    [(112, 224), (112, 448), (224, 448)]
    """
    ordered = sorted(names)
    return [(a, b) for i, a in enumerate(ordered) for b in ordered[i + 1 :]]
