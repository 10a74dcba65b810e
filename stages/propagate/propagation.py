"""Label propagation by exact windowed top-k attention over context frames.

Every cell of the target frame is compared, in every context frame, with the cells inside a window around its own
position. It keeps the ``top_k`` most similar of all of them, and takes the mean of their labels weighted by the
softmax of similarity over temperature. Caron et al., Emerging Properties in Self-Supervised Vision Transformers,
2021, section 4.2.2 (https://arxiv.org/abs/2104.14294); Jabri et al., Space-Time Correspondence as a Contrastive
Random Walk, 2020, appendix (https://arxiv.org/abs/2006.14613).

Differs from the reference: no (hw) x (hw) affinity and no mask of that size is ever made. The target's cells are
cut into small tiles; a tile is compared, in one matrix product, with the rectangle that holds the windows of all
its cells, and the ragged rest is masked. The best ``top_k`` are found through the maxima of blocks of one window
row: the k largest values lie in the k blocks with the largest maxima, so only those are searched. The exponential
is taken after the selection and relative to the largest value, which gives the same weights without overflow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.propagate.windows import Window

__all__ = ["Window", "propagate_labels"]
DEFAULT_MAX_BYTES = 256 * 2**20
DINO_WINDOW = Window()


def propagate_labels(
    target: Tensor,
    contexts: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    windows: Window | Sequence[Window] = DINO_WINDOW,
    top_k: int = 5,
    temperature: float = 0.1,
    keep_ties: bool = True,
    motion: Tensor | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Tensor:
    """Propagate the context frames' labels to the target frame.

    Args:
        target: float32 ``(C, h, w)``, L2-normalized over C for cosine similarity.
        contexts: n maps ``(C, h, w)``, normalized the same way. Channels-last memory is read fastest.
        labels: n maps ``(K, h, w)``, soft or one-hot.
        windows: One window for all context frames, or one per frame.
        top_k: Number of cells that vote, over all context frames together.
        temperature: Softmax temperature of the weights.
        keep_ties: Keep every cell that is as similar as the k-th (DINO); otherwise exactly ``top_k`` (videowalk).
        motion: float32 ``(2, h, w)``: offset (down, right) of each target cell per frame back, in cells. A
            context gets the larger of two priors: around zero offset, and around ``prior_frames`` times this.
        max_bytes: Ceiling for the working memory of this call: the copies of windows, similarities, indices. A
            single row of tiles is always worked on, whatever the ceiling.

    Returns:
        float32 ``(K, h, w)``: the weighted mean of the selected cells' labels; sums to 1 over K wherever the
        context's labels do.

    Raises:
        ValueError: No context, or shapes that do not fit together.

    >>> eye = torch.eye(4).reshape(4, 2, 2)
    >>> propagate_labels(eye, [eye], [torch.arange(4.0).reshape(1, 2, 2)], top_k=1).flatten().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    _check(target, contexts, labels, top_k, temperature)
    per_context = [windows] * len(contexts) if isinstance(windows, Window) else list(windows)
    if len(per_context) != len(contexts):
        raise ValueError(f"{len(per_context)} windows for {len(contexts)} contexts")
    groups = _group(contexts, labels, per_context, temperature)
    num_labels, (height, width) = labels[0].shape[0], target.shape[1:]
    out = torch.empty((num_labels, height, width), dtype=torch.float32, device=target.device)
    selection = _Selection(top_k, temperature, keep_ties)
    query = target.permute(1, 2, 0)
    for strip in _strips(query, groups, max_bytes):
        windows_of_strip = [group.copy(strip) for group in groups]
        for tile in strip.tiles():
            cells = query[tile.top : tile.bottom, tile.left : tile.right].reshape(-1, query.shape[-1]).T
            centers = (
                None if motion is None else motion[:, tile.top : tile.bottom, tile.left : tile.right].flatten(1)
            )
            scored = [keys.score(tile, cells, centers) for keys in windows_of_strip]
            votes = selection.vote(scored)
            out[:, tile.top : tile.bottom, tile.left : tile.right] = votes.reshape(num_labels, *tile.size)
    return out


@dataclass(frozen=True, slots=True)
class _Area:
    """A rectangle of cells, ``bottom`` and ``right`` excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    def grown(self, reach: int | None, height: int, width: int) -> _Area:
        """The rectangle that holds all windows around these cells, inside the frame."""
        if reach is None:
            return _Area(0, height, 0, width)
        return _Area(
            max(self.top - reach, 0),
            min(self.bottom + reach, height),
            max(self.left - reach, 0),
            min(self.right + reach, width),
        )


@dataclass(frozen=True, slots=True)
class _Strip(_Area):
    """An area whose windows are copied together, worked on in tiles of ``tile_rows`` and its full width."""

    tile_rows: int

    def tiles(self) -> Iterator[_Area]:
        for top in range(self.top, self.bottom, self.tile_rows):
            yield _Area(top, min(top + self.tile_rows, self.bottom), self.left, self.right)


@dataclass(frozen=True, slots=True)
class _Group:
    """Context frames whose windows have one shape: keys ``(h, w, C)`` each, labels ``(K, n, h, w)``.

    ``priors`` ``(3, n, 1, 1)`` are the frames' :meth:`Window.prior` and ``prior_frames``, None without a prior;
    ``masks`` caches, by the kind of tile, what its window's ragged edge excludes, and the squared offsets.
    """

    window: Window
    keys: tuple[Tensor, ...]
    labels: Tensor
    priors: Tensor | None
    masks: dict[tuple[int, ...], tuple[Tensor, Tensor]]

    def copy(self, strip: _Strip) -> _Keys:
        """The cells that any window of the strip can reach, side by side in memory."""
        height, width = self.keys[0].shape[:2]
        area = strip.grown(self.window.reach, height, width)
        parts = [key[area.top : area.bottom, area.left : area.right] for key in self.keys]
        stacked = parts[0][None] if len(parts) == 1 else torch.stack(parts)
        labels = self.labels[:, :, area.top : area.bottom, area.left : area.right]
        return _Keys(self, area, stacked.contiguous(), labels)


@dataclass(frozen=True, slots=True)
class _Keys:
    """A group's cells around one strip: values ``(n, rows, columns, C)``, labels ``(K, n, rows, columns)``."""

    group: _Group
    area: _Area
    values: Tensor
    labels: Tensor

    def score(self, tile: _Area, cells: Tensor, motion: Tensor | None) -> _Scores:
        """Similarities of the tile's cells ``(C, Q)``, moving by ``(2, Q)``, with their windows' rectangle."""
        height, width = self.group.keys[0].shape[:2]
        reach = tile.grown(self.group.window.reach, height, width)
        rows = slice(reach.top - self.area.top, reach.bottom - self.area.top)
        keys = self.values[:, rows].flatten(1, 2)
        mask, squared = self._mask(tile, reach)
        if motion is not None and self.group.priors is not None and bool(self.group.priors[2].any()):
            squared = torch.minimum(squared, self._squared_from(tile, reach, motion))
        count = keys.shape[0]
        similarity = torch.baddbmm(mask.expand(count, -1, -1), keys, cells.expand(count, -1, -1))
        if self.group.priors is not None:
            factor, cap, _ = self.group.priors
            similarity.addcmul_(torch.minimum(squared, cap), factor)
        return _Scores(similarity.view(count * reach.size[0], reach.size[1], -1), self.labels[:, :, rows])

    def _squared_from(self, tile: _Area, reach: _Area, motion: Tensor) -> Tensor:
        """Squared distances ``(n, cells, Q)`` from where each cell was in each context frame by its motion."""
        assert self.group.priors is not None
        rows = _offsets(reach.top, reach.bottom, tile.top, tile.bottom, motion.device)
        columns = _offsets(reach.left, reach.right, tile.left, tile.right, motion.device)
        down = rows[:, :, None].expand(-1, -1, tile.size[1]).flatten(1)
        right = columns[:, None].expand(-1, tile.size[0], -1).flatten(1)
        frames = self.group.priors[2]
        vertical, horizontal = (down - frames * motion[0]) ** 2, (right - frames * motion[1]) ** 2
        return (vertical[:, :, None] + horizontal[:, None]).flatten(1, 2)

    def _mask(self, tile: _Area, reach: _Area) -> tuple[Tensor, Tensor]:
        # Tiles at the same distance from the borders share their mask: a handful of them in all.
        kind = (*tile.size, *reach.size, tile.top - reach.top, tile.left - reach.left)
        found = self.group.masks.get(kind)
        if found is None:
            device = self.values.device
            rows = _offsets(reach.top, reach.bottom, tile.top, tile.bottom, device)
            columns = _offsets(reach.left, reach.right, tile.left, tile.right, device)
            rows, columns = rows[:, None, :, None], columns[None, :, None, :]
            shape = (1, reach.size[0] * reach.size[1], -1)
            found = self.group.window.mask(rows, columns).reshape(shape), (rows**2 + columns**2).reshape(shape)
            self.group.masks[kind] = found
        return found


@dataclass(frozen=True, slots=True)
class _Scores:
    """Similarities ``(blocks, columns, Q)`` of one group, -inf outside the windows.

    A block is one row of the rectangle in one context frame; ``labels`` are ``(K, n, rows, columns)``, so that
    block b and column c belong to label ``b * columns + c`` of the flattened map.
    """

    similarity: Tensor
    labels: Tensor

    def largest(self, count: int) -> tuple[Tensor, Tensor]:
        """The largest similarities of each cell and their flat positions, ``(Q, count)`` or what there is."""
        blocks, columns, cells = self.similarity.shape
        candidates = self.similarity.amax(dim=1).topk(min(count, blocks), dim=0).indices.T
        device = self.similarity.device
        cell, column = torch.arange(cells, device=device), torch.arange(columns, device=device)
        values = self.similarity[candidates[:, :, None], column, cell[:, None, None]].flatten(1)
        top = values.topk(min(count, values.shape[1]), dim=1)
        block = candidates.gather(1, top.indices // columns)
        return top.values, block * columns + top.indices % columns

    def labels_at(self, positions: Tensor) -> Tensor:
        """Labels ``(K, Q, k)`` at flat positions ``(Q, k)``."""
        rows, columns = self.labels.shape[2:]
        row = positions // columns
        return self.labels[:, row // rows, row % rows, positions % columns]


@dataclass(frozen=True, slots=True)
class _Selection:
    """Which cells vote, and with what weight."""

    top_k: int
    temperature: float
    keep_ties: bool

    def vote(self, scored: list[_Scores]) -> Tensor:
        """Labels ``(K, Q)`` of a tile's cells."""
        # One more than asked for: if it equals the k-th, there may be more ties than the selection holds.
        count = self.top_k + self.keep_ties
        found = [scores.largest(count) for scores in scored]
        values = torch.cat([value for value, _ in found], dim=1)
        labels = torch.cat([s.labels_at(where) for s, (_, where) in zip(scored, found, strict=True)], dim=2)
        top = values.topk(min(count, values.shape[1]), dim=1)
        kept = top.values[:, : self.top_k]
        weights = torch.softmax(kept / self.temperature, dim=1)
        picked = labels.gather(2, top.indices[None, :, : self.top_k].expand(labels.shape[0], -1, -1))
        votes = (picked * weights).sum(dim=2)
        if self.keep_ties and top.values.shape[1] > self.top_k:
            tied = (top.values[:, self.top_k] == kept[:, -1]) & kept[:, -1].isfinite()
            if bool(tied.any()):
                votes[:, tied] = self._vote_of_ties(scored, top.values[tied, 0], kept[tied, -1], tied)
        return votes

    def _vote_of_ties(self, scored: list[_Scores], best: Tensor, threshold: Tensor, tied: Tensor) -> Tensor:
        """Votes where more than k cells are at least as similar as the k-th: every one of them counts."""
        votes: Tensor | None = None
        total: Tensor | None = None
        for scores in scored:
            similarity = scores.similarity[:, :, tied].flatten(0, 1)
            weights = torch.exp((similarity - best) / self.temperature).masked_fill(similarity < threshold, 0)
            part = scores.labels.flatten(1) @ weights
            votes = part if votes is None else votes + part
            total = weights.sum(0) if total is None else total + weights.sum(0)
        assert votes is not None
        assert total is not None
        return votes / total


def _offsets(start: int, stop: int, first: int, last: int, device: torch.device) -> Tensor:
    """Offsets (context - target) along one axis, float32 ``(stop - start, last - first)``."""
    context = torch.arange(start, stop, device=device, dtype=torch.float32)
    return context[:, None] - torch.arange(first, last, device=device, dtype=torch.float32)


def _group(
    contexts: Sequence[Tensor], labels: Sequence[Tensor], windows: Sequence[Window], temperature: float
) -> list[_Group]:
    members: dict[tuple[Window, int], list[int]] = {}
    for index, window in enumerate(windows):
        shape = replace(window, prior_sigma_cells=None, prior_floor=None, prior_frames=0)
        # Without a limit there is nothing to copy together: each such frame is read where it lies.
        members.setdefault((shape, -1 if window.reach is not None else index), []).append(index)
    groups = []
    for (window, _), indices in members.items():
        values = [(*windows[i].prior(temperature), float(windows[i].prior_frames)) for i in indices]
        priors = torch.tensor(values, device=contexts[0].device).T
        groups.append(
            _Group(
                window,
                tuple(contexts[i].permute(1, 2, 0) for i in indices),
                torch.stack([labels[i] for i in indices], dim=1).to(torch.float32),
                priors[:, :, None, None] if bool(priors[0].any()) else None,
                {},
            )
        )
    return groups


def _strips(query: Tensor, groups: Sequence[_Group], max_bytes: int) -> Iterator[_Strip]:
    """Cut the target into strips whose copied windows, and tiles whose similarities, fit half of ``max_bytes``."""
    height, width, channels = query.shape
    side = 16 if query.is_cuda else 8
    while side > 1 and _similarity_bytes(side, height, width, groups) > max_bytes / 2:
        side //= 2
    rows = height
    while rows > side and _copy_bytes(rows, side, (height, width, channels), groups) > max_bytes / 2:
        rows = max(side, -(-rows // 2))
    for left in range(0, width, side):
        for top in range(0, height, rows):
            yield _Strip(top, min(top + rows, height), left, min(left + side, width), side)


def _similarity_bytes(side: int, height: int, width: int, groups: Sequence[_Group]) -> int:
    cells = 0
    for group in groups:
        reach = group.window.reach
        rows = height if reach is None else min(height, side + 2 * reach)
        columns = width if reach is None else min(width, side + 2 * reach)
        cells += len(group.keys) * rows * columns
    return 4 * cells * side * side


def _copy_bytes(rows: int, side: int, shape: tuple[int, int, int], groups: Sequence[_Group]) -> int:
    height, width, channels = shape
    cells = 0
    for group in groups:
        reach = group.window.reach
        if reach is not None:
            cells += len(group.keys) * min(height, rows + 2 * reach) * min(width, side + 2 * reach)
    return 4 * cells * channels


def _check(
    target: Tensor, contexts: Sequence[Tensor], labels: Sequence[Tensor], top_k: int, temperature: float
) -> None:
    if not contexts or len(contexts) != len(labels):
        raise ValueError(f"need one label map per context and at least one, got {len(labels)} and {len(contexts)}")
    if top_k < 1 or temperature <= 0:
        raise ValueError(f"top_k and temperature must be positive, got {top_k} and {temperature}")
    for context, label in zip(contexts, labels, strict=True):
        if context.shape != target.shape:
            raise ValueError(f"contexts must be {tuple(target.shape)} like the target, got {tuple(context.shape)}")
        if label.shape[0] != labels[0].shape[0] or label.shape[1:] != target.shape[1:]:
            raise ValueError(
                f"labels must be (K, h, w), h and w {tuple(target.shape[1:])}, one K; got {tuple(label.shape)}"
            )
