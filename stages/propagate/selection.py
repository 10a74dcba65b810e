"""The most similar cells of a tile's windows, and their vote.

The k largest similarities are found through the maxima of blocks of one window row: the k largest values lie in
the k blocks with the largest maxima, so only those are searched. The exponential is taken after the selection and
relative to the largest value, which gives the weights of the protocol without overflow.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_EXTRA_CANDIDATES = 3
"""More cells than can vote that are compared again in float32 where the search is in bfloat16."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Similarities of a tile's Q cells with the rectangle of their windows in n context frames.

    Attributes:
        similarity: float32 ``(Q, n * rows, columns)``, -inf outside the windows; approximate where ``keys`` are
            bfloat16.
        cells: ``(Q, C)``, the tile's descriptors.
        keys: ``(n * rows * columns, C)``, the rectangle's descriptors, of the same dtype.
        bias: float32 ``(Q, n or 1, rows * columns)``, what was added to the products.
        labels: float32 ``(K, n, rows, columns)``.
    """

    similarity: Tensor
    cells: Tensor
    keys: Tensor
    bias: Tensor
    labels: Tensor

    @classmethod
    def of(cls, cells: Tensor, keys: Tensor, bias: Tensor, labels: Tensor) -> Scores:
        """Compare cells ``(Q, C)`` with keys ``(n, rows, columns, C)``."""
        count, rows, columns, channels = keys.shape
        flat = keys.reshape(-1, channels)
        similarity = (cells @ flat.T).to(torch.float32).view(len(cells), count, -1).add_(bias)
        return cls(similarity.view(len(cells), count * rows, columns), cells, flat, bias, labels)

    @property
    def is_exact(self) -> bool:
        """Whether ``similarity`` is."""
        return self.keys.dtype == torch.float32

    def largest(self, count: int) -> tuple[Tensor, Tensor]:
        """The largest similarities of each cell and their positions in the flattened rectangle, ``(Q, count)``.

        Fewer where there are fewer. Where the similarities are approximate, the values are those of float32 and in
        no order.
        """
        values, positions = self.highest(count)
        return (values if self.is_exact else self._compared_again(positions)), positions

    def highest(self, count: int) -> tuple[Tensor, Tensor]:
        """As :meth:`largest`, with the similarities as they are, approximate or not."""
        blocks, columns = self.similarity.shape[1:]
        candidates = self.similarity.amax(dim=2).topk(min(count, blocks), dim=1).indices
        values = self.similarity.gather(1, candidates[:, :, None].expand(-1, -1, columns)).flatten(1)
        top = values.topk(min(count, values.shape[1]), dim=1)
        return top.values, candidates.gather(1, top.indices // columns) * columns + top.indices % columns

    def similarity_of(self, chosen: Tensor | None) -> Tensor:
        """float32 similarities ``(q, n * rows * columns)`` of the cells a bool ``(Q,)`` chooses, or all."""
        if chosen is None:
            chosen = torch.arange(len(self.cells), device=self.cells.device)
        if self.is_exact:
            return self.similarity[chosen].flatten(1)
        products = self.cells[chosen].to(torch.float32) @ self.keys.to(torch.float32).T
        return products.view(len(products), -1, self.bias.shape[2]).add_(self.bias[chosen]).flatten(1)

    def bias_at(self, cells: Tensor, positions: Tensor) -> Tensor:
        """What was added to the products of cells with flat positions; both int64, broadcast."""
        where = positions if self.bias.shape[1] > 1 else positions % self.bias.shape[2]
        return self.bias.flatten(1)[cells, where]

    def labels_at(self, positions: Tensor) -> Tensor:
        """Labels ``(K, Q, k)`` at flat positions ``(Q, k)``."""
        rows, columns = self.labels.shape[2:]
        row = positions // columns
        return self.labels[:, row // rows, row % rows, positions % columns]

    def _compared_again(self, positions: Tensor) -> Tensor:
        keys = self.keys.index_select(0, positions.flatten()).to(torch.float32).view(*positions.shape, -1)
        products: Tensor = torch.linalg.vecdot(keys, self.cells.to(torch.float32)[:, None])
        contexts, cells = self.bias.shape[1:]
        where = positions if contexts > 1 else positions % cells
        return products + self.bias.flatten(1).gather(1, where)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which cells vote, and with what weight."""

    top_k: int
    temperature: float
    keep_ties: bool

    def vote(self, scored: list[Scores]) -> Tensor:
        """Labels ``(K, Q)`` of a tile's cells."""
        # One more than asked for: if it equals the k-th, there may be more ties than the selection holds.
        count = self.top_k + self.keep_ties
        searched = count if scored[0].is_exact else count + _EXTRA_CANDIDATES
        found = [scores.largest(searched) for scores in scored]
        values = torch.cat([value for value, _ in found], dim=1)
        top = values.topk(min(count, values.shape[1]), dim=1)
        kept = top.values[:, : self.top_k]
        weights = torch.softmax(kept / self.temperature, dim=1)
        votes = (_labels_at(scored, found, top.indices[:, : self.top_k]) * weights).sum(dim=2)
        if self.keep_ties and not values.is_cpu:
            return self._vote_of_ties(scored, None)  # a card is not asked whether there are ties
        if self.keep_ties and top.values.shape[1] > self.top_k:
            tied = (top.values[:, self.top_k] == kept[:, -1]) & kept[:, -1].isfinite()
            if bool(tied.any()):
                votes[:, tied] = self._vote_of_ties(scored, tied)
        return votes

    def vote_of_batch(self, similarity: Tensor, labels: Tensor) -> Tensor:
        """Labels ``(a, Q, K)`` of a areas' cells.

        Args:
            similarity: float32 ``(a, Q, u)``, -inf where a cell has no such candidate.
            labels: float32 ``(a, u, K)``, of the candidates.
        """
        areas, num_cells, num_candidates = similarity.shape
        top = similarity.topk(min(self.top_k + self.keep_ties, num_candidates), dim=2)
        kept = top.values[:, :, : self.top_k]
        weights = torch.softmax(kept / self.temperature, dim=2)
        first = torch.arange(areas, device=labels.device)[:, None, None] * num_candidates
        picked = labels.flatten(0, 1).index_select(0, (top.indices[:, :, : self.top_k] + first).flatten())
        votes = (weights.view(-1, 1, kept.shape[2]) @ picked.view(-1, kept.shape[2], labels.shape[2])).view(
            areas, num_cells, -1
        )
        if self.keep_ties and top.values.shape[2] > self.top_k:
            tied = (top.values[:, :, self.top_k] == kept[:, :, -1]) & kept[:, :, -1].isfinite()
            for area in tied.any(dim=1).nonzero().flatten().tolist():
                chosen = tied[area]
                weights = torch.exp((similarity[area, chosen] - kept[area, chosen, :1]) / self.temperature)
                weights.masked_fill_(similarity[area, chosen] < kept[area, chosen, -1:], 0)
                votes[area, chosen] = (weights @ labels[area]) / weights.sum(dim=1, keepdim=True)
        return votes

    def _vote_of_ties(self, scored: list[Scores], tied: Tensor | None) -> Tensor:
        """Votes where more than k cells are at least as similar as the k-th: every one of them counts.

        ``tied`` says which of the tile's cells; all of them if None.
        """
        similarity = torch.cat([scores.similarity_of(tied) for scores in scored], dim=1)
        largest = similarity.topk(min(self.top_k, similarity.shape[1]), dim=1).values
        weights = torch.exp((similarity - largest[:, :1]) / self.temperature)
        weights = weights.masked_fill((similarity < largest[:, -1:]) | similarity.isinf(), 0)
        labels = torch.cat([scores.labels.flatten(1) for scores in scored], dim=1)
        return (labels @ weights.T) / weights.sum(dim=1)


def _labels_at(scored: list[Scores], found: list[tuple[Tensor, Tensor]], chosen: Tensor) -> Tensor:
    """Labels ``(K, Q, k)`` of the chosen columns ``(Q, k)`` of all groups' positions side by side."""
    if len(scored) == 1:
        return scored[0].labels_at(found[0][1].gather(1, chosen))
    labels = torch.cat([s.labels_at(where) for s, (_, where) in zip(scored, found, strict=True)], dim=2)
    return labels.gather(2, chosen[None].expand(labels.shape[0], -1, -1))
