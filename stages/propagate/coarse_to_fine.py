"""Propagation on a grid that LiFT has refined: candidates are found on the backbone's grid, votes on the fine one.

Comparing every cell of a doubled grid with a window of the same size in pixels takes 16 times the comparisons.
Here the cells of the backbone's grid (the means of the fine cells in them, "coarse cells") are compared first, in
few principal directions. The most similar coarse cells of the context frames, and those next to them, are
candidates, which neighbors share, as they move alike. Then the fine cells are compared with the fine cells of the
candidates, in as many principal directions as hold nearly all of the descriptors: LiFT's bottleneck leaves most
channels redundant.

That neighbors share their matches is the idea of Barnes et al., PatchMatch, 2009; the rest is this project's.
``docs/benchmarks.md`` has what it costs and what it loses.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.propagate.areas import Area
from stages.propagate.propagation import scored_tiles
from stages.propagate.selection import Scores, Selection
from stages.propagate.windows import Window

DIMENSIONS = 64
"""Principal directions of the descriptors in which coarse cells are compared."""
LEFT_OUT = 1e-4
"""Share of the descriptors' energy outside of the directions in which fine cells are compared, at most. For keys
with LiFT 96 of 384 directions are enough; their cosines are then off by less than bf16 rounds them."""
_DIRECTIONS_STEP = 32
CANDIDATES = 4
"""Coarse cells that each coarse cell suggests to its neighborhood, with the four around each of them."""
SHARING_CELLS = 4
"""Side of the square of coarse cells that share their candidates."""
_AREAS_AT_ONCE = 6
"""Areas whose fine cells are compared in one batch, which is as wide as its area with most candidates."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """What is kept of a frame.

    Attributes:
        source: Its fine descriptors.
        slot: Where its fine cells lie in the store.
        basis: ``(C, d)``, of the fine cells in the store.
        coarse: ``(d', H, W)``, descriptors of the coarse cells in the last of these directions, channels last,
            in the dtype of the search.
    """

    source: Tensor
    slot: int
    basis: Tensor
    coarse: Tensor


class CoarseToFine:
    """Propagates labels as :func:`~stages.propagate.propagation.propagate_labels`, coarse to fine.

    Remembers the latest frames it was called with, so that each is prepared once; results do not depend on what it
    remembers.

    Args:
        parts: Fine cells along each side of a coarse one.
        search_dtype: Coarse cells are compared in it, fine ones in float32.
        candidates: See :data:`CANDIDATES`.
    """

    def __init__(self, parts: int, *, search_dtype: torch.dtype, candidates: int = CANDIDATES) -> None:
        self._parts = parts
        self._dtype = search_dtype
        self._candidates = candidates
        self._known: OrderedDict[int, _Frame] = OrderedDict()
        self._store = torch.empty(0)
        self._basis: tuple[Tensor, Tensor] | None = None

    def __call__(
        self,
        target: Tensor,
        contexts: Sequence[Tensor],
        labels: Sequence[Tensor],
        *,
        windows: Sequence[Window],
        top_k: int,
        temperature: float,
        keep_ties: bool,
        motion: Tensor | None,
        max_bytes: int,
    ) -> Tensor:
        """Propagate the context frames' labels to the target frame.

        Args:
            target: float32 ``(C, h, w)``, L2-normalized, channels last in memory; h and w multiples of ``parts``.
            contexts: n maps like it.
            labels: n maps ``(K, h, w)``.
            windows: One per context, in coarse cells: which coarse cells a coarse cell is compared with.
            top_k: Number of fine cells that vote.
            temperature: Softmax temperature of the weights.
            keep_ties: Keep every candidate that is as similar as the k-th.
            motion: float32 ``(2, h, w)``, offset of each fine cell per frame back, in fine cells.
            max_bytes: Ceiling for the working memory of the comparison of coarse cells.

        Returns:
            float32 ``(K, h, w)``.

        Raises:
            ValueError: A grid that does not consist of whole coarse cells.
        """
        height, width = target.shape[1:]
        if height % self._parts or width % self._parts:
            raise ValueError(f"a grid of {height} x {width} is not made of {self._parts} x {self._parts} parts")
        basis = self._basis_of(contexts[0])
        self._make_room(height * (width // self._parts), self._parts * basis.shape[1], target.device)
        frames = [self._prepared(frame, basis, len(contexts) + 1) for frame in (target, *contexts)]
        size = frames[0].coarse.shape[1:]
        numbers = torch.arange(len(contexts) * size.numel(), dtype=torch.float32, device=target.device)
        tiles = scored_tiles(
            frames[0].coarse,
            [frame.coarse for frame in frames[1:]],
            list(numbers.view(len(contexts), 1, *size)),
            windows,
            temperature=temperature,
            motion=None if motion is None else F.avg_pool2d(motion, self._parts) / self._parts,
            max_bytes=max_bytes,
            row_multiple=SHARING_CELLS,
        )
        fine = _FineCells(self._parts, self._store, [frame.slot for frame in frames], labels)
        selection = Selection(top_k, temperature, keep_ties)
        for tile, scored in tiles:
            for shared in _share_candidates(tile, scored, self._candidates, (size[0], size[1])):
                fine.vote(shared, selection)
        return fine.labels_out()

    def _prepared(self, frame: Tensor, basis: Tensor, num_frames: int) -> _Frame:
        """A frame's entry, made where it is not known with this basis; the least recently used ones go."""
        known = self._known.pop(id(frame), None)
        if known is None or known.source is not frame or known.basis is not basis:
            slot = self._free_slot(num_frames) if known is None else known.slot
            cells = frame.permute(1, 2, 0) @ basis
            self._store[slot] = cells.reshape(self._store.shape[1:])
            coarse = _pooled(cells, self._parts)[..., -DIMENSIONS:]
            known = _Frame(frame, slot, basis, coarse.to(self._dtype).permute(2, 0, 1))
        self._known[id(frame)] = known
        return known

    def _make_room(self, num_lines: int, length: int, device: torch.device) -> None:
        """Begin a new store where frames have another size or number of directions than those in it."""
        if self._store.shape[1:] != (num_lines, length) or self._store.device != device:
            self._known.clear()
            self._store = torch.empty((0, num_lines, length), device=device)

    def _free_slot(self, num_frames: int) -> int:
        """A place in the store for a frame: an unused one, or the least recently used frame's."""
        if self._store.shape[0] < num_frames:
            grown = self._store.new_empty((num_frames, *self._store.shape[1:]))
            grown[: self._store.shape[0]] = self._store
            self._store = grown
        used = {known.slot for known in self._known.values()}
        free = [slot for slot in range(self._store.shape[0]) if slot not in used]
        return free[0] if free else self._known.popitem(last=False)[1].slot

    def _basis_of(self, frame: Tensor) -> Tensor:
        """The leading principal directions ``(C, d)`` of a frame's cells, about zero, the first direction last."""
        if self._basis is None or self._basis[0] is not frame:
            cells = frame.flatten(1)
            values, vectors = torch.linalg.eigh(cells @ cells.T)
            left_out = int((values.cumsum(0) <= LEFT_OUT * values.sum()).sum())
            count = max(DIMENSIONS, -(-(len(values) - left_out) // _DIRECTIONS_STEP) * _DIRECTIONS_STEP)
            self._basis = (frame, vectors[:, -min(count, len(values)) :].contiguous())
        return self._basis[1]


@dataclass(frozen=True, slots=True)
class _Shared:
    """Candidates of a areas of q coarse cells each, u per area.

    Attributes:
        cells: int64 ``(a, q)``: coarse cells of the target; a cell may be there twice.
        frames: int64 ``(a, u)``: the candidates' frames among the contexts,
        places: int64 ``(a, u)``: and which coarse cells of them they are.
        bias: float32 ``(a, q, u)``, what is added to similarities; -inf where a cell has no such candidate.
    """

    cells: Tensor
    frames: Tensor
    places: Tensor
    bias: Tensor


class _FineCells:
    """The comparison of fine cells.

    Args:
        parts: Fine cells along each side of a coarse one.
        store: ``(slots, h W, parts C)``: a line holds the fine cells of one row of a coarse cell.
        slots: Of the target and of the contexts.
        labels: n maps ``(K, h, w)``.
    """

    def __init__(self, parts: int, store: Tensor, slots: Sequence[int], labels: Sequence[Tensor]) -> None:
        count, height, width = labels[0].shape
        self._parts = parts
        self._columns = width // parts
        self._num_lines = height * self._columns
        self._store = store.flatten(0, 1)
        self._first_lines = torch.tensor(slots, device=store.device) * self._num_lines
        self._labels = torch.stack(list(labels)).to(torch.float32).permute(0, 2, 3, 1).reshape(-1, parts * count)
        self._out = torch.empty((self._num_lines, parts * count), device=store.device)
        self._row_offsets = torch.arange(parts, device=store.device) * self._columns

    def vote(self, shared: _Shared, selection: Selection) -> None:
        """Label the fine cells of areas."""
        num_areas, num_cells, num_candidates = shared.bias.shape
        own, lines = self._lines(shared.cells), self._lines(shared.places)
        cells = self._read(own + self._first_lines[0])
        keys = self._read(lines + self._first_lines[1:][shared.frames][..., None])
        similarity = torch.bmm(cells, keys.transpose(1, 2))
        fine = self._parts**2
        similarity.view(num_areas, num_cells, fine, num_candidates, fine).add_(shared.bias[:, :, None, :, None])
        picked = self._labels.index_select(0, (lines + shared.frames[..., None] * self._num_lines).flatten())
        votes = selection.vote_of_batch(similarity, picked.view(num_areas, num_candidates * fine, -1))
        self._out[own.flatten()] = votes.reshape(own.numel(), -1)

    def labels_out(self) -> Tensor:
        """The labels of all fine cells, ``(K, h, w)``."""
        rows = self._num_lines // self._columns
        return self._out.view(rows, self._columns * self._parts, -1).permute(2, 0, 1).contiguous()

    def _lines(self, places: Tensor) -> Tensor:
        """Lines ``(a, u, parts)`` of the rows of coarse cells ``(a, u)``."""
        first = places // self._columns * (self._parts * self._columns) + places % self._columns
        return first[..., None] + self._row_offsets

    def _read(self, lines: Tensor) -> Tensor:
        """Descriptors ``(a, u parts parts, C)`` at lines ``(a, u, parts)`` of the store."""
        values = self._store.index_select(0, lines.flatten())
        return values.view(lines.shape[0], -1, self._store.shape[1] // self._parts)


def _pooled(cells: Tensor, parts: int) -> Tensor:
    """Means of the fine cells ``(h, w, C)`` of each coarse cell, normalized, ``(H, W, C)``."""
    height, width, channels = cells.shape
    cells = cells.reshape(height // parts, parts, width // parts, parts, channels)
    total = cells[:, 0, :, 0].clone()
    for row, column in list(itertools.product(range(parts), repeat=2))[1:]:
        total += cells[:, row, :, column]
    return F.normalize(total, dim=2)


def _share_candidates(
    tile: Area, scored: Sequence[Scores], count: int, grid_hw: tuple[int, int]
) -> Iterator[_Shared]:
    """What the cells of a tile's areas suggest to each other; areas with about as many candidates together.

    Args:
        tile: Q coarse cells.
        scored: Their similarities with the windows in all contexts; the labels are the numbers of the cells.
        count: Candidates that each cell suggests.
        grid_hw: Coarse cells in a column and in a row of the frame.
    """
    members = _areas(tile, scored[0].cells.device)
    numbers = torch.cat([scores.labels.flatten() for scores in scored]).long()
    chosen = torch.zeros((len(members), len(numbers) + 1), dtype=torch.bool, device=members.device)
    chosen.scatter_(1, _suggestions(scored, count)[members].flatten(1), True)
    chosen = _with_neighbors(chosen[:, :-1], scored)
    counts = chosen.sum(dim=1)
    for areas in torch.split(counts.argsort(stable=True), _AREAS_AT_ONCE):
        area, position = chosen[areas].nonzero().unbind(1)
        own, known = members[areas], counts[areas]
        column = torch.arange(area.shape[0], device=area.device) - (known.cumsum(0) - known)[area]
        positions = position.new_zeros((own.shape[0], int(known.max())))
        positions[area, column] = position
        absent = torch.arange(positions.shape[1], device=area.device) >= known[:, None]
        bias = _bias(scored, own, positions).masked_fill_(absent[:, None], -math.inf)
        candidates, num_cells = numbers[positions], grid_hw[0] * grid_hw[1]
        rows, columns = own // tile.size[1] + tile.top, own % tile.size[1] + tile.left
        yield _Shared(rows * grid_hw[1] + columns, candidates // num_cells, candidates % num_cells, bias)


def _areas(tile: Area, device: torch.device) -> Tensor:
    """The cells of a tile, row by row, in areas of about :data:`SHARING_CELLS` squared, int64 ``(a, q)``.

    Where the tile does not divide evenly, the last areas have cells twice.
    """
    axes = []
    for length in tile.size:
        areas = -(-length // SHARING_CELLS)
        side = -(-length // areas)
        axes.append(torch.arange(areas * side, device=device).clamp(max=length - 1).view(areas, side))
    cells = axes[0][:, None, :, None] * tile.size[1] + axes[1][None, :, None, :]
    return cells.flatten(2).flatten(0, 1)


def _suggestions(scored: Sequence[Scores], count: int) -> Tensor:
    """Positions ``(Q, m)`` of each cell's best candidates, numbered on from scores to scores; the next is none."""
    values, positions, first = [], [], 0
    for scores in scored:
        value, position = scores.highest(count)
        values.append(value)
        positions.append(position + first)
        first += scores.similarity[0].numel()
    value, position = torch.cat(values, dim=1), torch.cat(positions, dim=1)
    if len(scored) > 1:
        best = value.topk(min(count, value.shape[1]), dim=1, sorted=False)
        value, position = best.values, position.gather(1, best.indices)
    return torch.where(value.isfinite(), position, first)  # not finite: outside of the window


def _with_neighbors(chosen: Tensor, scored: Sequence[Scores]) -> Tensor:
    """Chosen positions, bool ``(a, u)``, and the four next to each of them."""
    wider, first = [], 0
    for scores in scored:
        shape = scores.labels.shape[1:]
        before = chosen[:, first : first + shape.numel()].view(-1, *shape)
        after = before.clone()
        after[:, :, 1:] |= before[:, :, :-1]
        after[:, :, :-1] |= before[:, :, 1:]
        after[:, :, :, 1:] |= before[:, :, :, :-1]
        after[:, :, :, :-1] |= before[:, :, :, 1:]
        wider.append(after.flatten(1))
        first += shape.numel()
    return torch.cat(wider, dim=1)


def _bias(scored: Sequence[Scores], members: Tensor, positions: Tensor) -> Tensor:
    """What is added to the similarities of cells ``(a, q)`` with positions ``(a, u)``: ``(a, q, u)``."""
    bias: Tensor | None = None
    first = 0
    for scores in scored:
        last = first + scores.similarity[0].numel()
        own = scores.bias_at(members[:, :, None], (positions - first).clamp(0, last - first - 1)[:, None])
        inside = (positions >= first) & (positions < last)
        bias = own if bias is None else torch.where(inside[:, None], own, bias)
        first = last
    assert bias is not None
    return bias
