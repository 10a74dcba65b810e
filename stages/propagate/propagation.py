"""Label propagation by exact windowed top-k attention over context frames.

Every cell of the target frame is compared, in every context frame, with the cells inside a window around its own
position. It keeps the ``top_k`` most similar of all of them, and takes the mean of their labels weighted by the
softmax of similarity over temperature. Caron et al., Emerging Properties in Self-Supervised Vision Transformers,
2021, section 4.2.2 (https://arxiv.org/abs/2104.14294); Jabri et al., Space-Time Correspondence as a Contrastive
Random Walk, 2020, appendix (https://arxiv.org/abs/2006.14613).

Differs from the reference: no (hw) x (hw) affinity and no mask of that size is ever made where windows are small
next to the frame. The target's cells are cut into small tiles; a tile is compared, in one matrix product, with the
rectangle that holds the windows of all its cells, and the ragged rest is masked. Where that rectangle would be
nearly the whole frame, the frame is compared as it lies. How the most similar are found: ``selection.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from stages.propagate.areas import Area, Strip
from stages.propagate.kernel_choice import Kernel, pick_kernel
from stages.propagate.selection import Scores, Selection
from stages.propagate.windows import Window

__all__ = ["Window", "propagate_labels"]
DEFAULT_MAX_BYTES = 256 * 2**20
DINO_WINDOW = Window()
_WHOLE_FRAME_CELLS = 256
"""Target cells compared with the whole frame at a time."""
_WHOLE_FRAME_SHARE = 0.75
"""From this share of the frame on, a rectangle of windows is not cut out of it."""


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
    search_dtype: torch.dtype = torch.float32,
    max_bytes: int = DEFAULT_MAX_BYTES,
    kernel: Kernel = "auto",
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
        search_dtype: float32 is exact. bfloat16 rounds the descriptors (a cosine moves by about 1e-4), looks for
            candidates in products of bfloat16, and compares these again in float32; for processors that have it.
        max_bytes: Ceiling for the working memory of this call: the copies of windows, similarities, indices. A
            single row of tiles is always worked on, whatever the ceiling.
        kernel: "triton" is one kernel for cards that makes no similarities in memory, "tiled" this module,
            "auto" the kernel on CUDA and this module elsewhere.

    Returns:
        float32 ``(K, h, w)``: the weighted mean of the selected cells' labels; sums to 1 over K wherever the
        context's labels do.

    Raises:
        ValueError: No context, or shapes that do not fit together.
        ConfigError: A kernel that cannot run here.

    >>> eye = torch.eye(4).reshape(4, 2, 2)
    >>> propagate_labels(eye, [eye], [torch.arange(4.0).reshape(1, 2, 2)], top_k=1).flatten().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    _check(target, contexts, labels, top_k, temperature)
    per_context = [windows] * len(contexts) if isinstance(windows, Window) else list(windows)
    if len(per_context) != len(contexts):
        raise ValueError(f"{len(per_context)} windows for {len(contexts)} contexts")
    if pick_kernel(kernel, target.device) == "triton":
        from stages.propagate.triton_kernel import propagate_with_triton

        return propagate_with_triton(
            target, contexts, labels, windows=per_context, top_k=top_k, temperature=temperature,
            keep_ties=keep_ties, motion=motion, search_dtype=search_dtype,
        )  # fmt: skip
    num_labels, (height, width) = labels[0].shape[0], target.shape[1:]
    out = torch.empty((num_labels, height, width), dtype=torch.float32, device=target.device)
    selection = Selection(top_k, temperature, keep_ties)
    target, contexts = target.to(search_dtype), [context.to(search_dtype) for context in contexts]
    groups = _group(contexts, labels, per_context, temperature)
    for tile, scored in _scored_tiles(target, groups, motion, max_bytes):
        out[(slice(None), *tile.slices)] = selection.vote(scored).reshape(num_labels, *tile.size)
    return out


def scored_tiles(
    target: Tensor,
    contexts: Sequence[Tensor],
    labels: Sequence[Tensor],
    windows: Sequence[Window],
    *,
    temperature: float,
    motion: Tensor | None,
    max_bytes: int,
    row_multiple: int = 1,
) -> Iterator[tuple[Area, list[Scores]]]:
    """Compare the target with the windows of its contexts, a tile of cells at a time.

    Args:
        target: ``(C, h, w)``, in the dtype of the comparison.
        contexts: n maps of the same shape and dtype.
        labels: n maps ``(K, h, w)``, which the scores hand out at any position.
        windows: One per context.
        temperature: Of the votes, by which a window's prior becomes a similarity.
        motion: See :func:`propagate_labels`.
        max_bytes: Ceiling for the working memory.
        row_multiple: Tiles of whole rows have a multiple of so many rows, as far as the frame has them.

    Yields:
        A tile of the target, and its similarities with each group of contexts whose windows have one shape.
    """
    groups = _group(contexts, labels, windows, temperature)
    yield from _scored_tiles(target, groups, motion, max_bytes, row_multiple)


def _scored_tiles(
    target: Tensor, groups: Sequence[_Group], motion: Tensor | None, max_bytes: int, row_multiple: int = 1
) -> Iterator[tuple[Area, list[Scores]]]:
    query = target.permute(1, 2, 0)
    for strip in _strips(query, groups, max_bytes, row_multiple):
        windows_of_strip = [group.copy(strip) for group in groups]
        for tile in strip.tiles():
            cells = query[tile.slices].reshape(-1, query.shape[-1])
            moved = None if motion is None else motion[(slice(None), *tile.slices)].flatten(1)
            yield tile, [keys.score(tile, cells, moved) for keys in windows_of_strip]


@dataclass(frozen=True, slots=True)
class _Group:
    """Context frames whose windows have one shape: keys ``(h, w, C)`` each, labels ``(K, n, h, w)``.

    ``priors`` ``(3, n, 1)`` are the frames' :meth:`Window.prior` and ``prior_frames``, None without a prior;
    ``moves`` says whether any of the latter is not 0.
    """

    window: Window
    keys: tuple[Tensor, ...]
    labels: Tensor
    priors: Tensor | None
    moves: bool

    def copy(self, strip: Strip) -> _Keys:
        """The cells that any window of the strip can reach, side by side in memory."""
        height, width = self.keys[0].shape[:2]
        reach = None if strip.whole else self.window.reach
        area = strip.grown(reach, height, width)
        parts = [key[area.top : area.bottom, area.left : area.right] for key in self.keys]
        stacked = parts[0][None] if len(parts) == 1 else torch.stack(parts)
        labels = self.labels[:, :, area.top : area.bottom, area.left : area.right]
        return _Keys(self, area, reach, stacked.contiguous(), labels)


@dataclass(frozen=True, slots=True)
class _Keys:
    """A group's cells around one strip: values ``(n, rows, columns, C)``, labels ``(K, n, rows, columns)``."""

    group: _Group
    area: Area
    reach: int | None
    values: Tensor
    labels: Tensor

    def score(self, tile: Area, cells: Tensor, motion: Tensor | None) -> Scores:
        """Similarities of the tile's cells ``(Q, C)``, moving by ``(2, Q)``, with their windows' rectangle."""
        height, width = self.group.keys[0].shape[:2]
        reach = tile.grown(self.reach, height, width)
        rows = slice(reach.top - self.area.top, reach.bottom - self.area.top)
        bias = self._bias(tile, reach, motion)
        return Scores.of(cells, self.values[:, rows], bias, self.labels[:, :, rows])

    def _bias(self, tile: Area, reach: Area, motion: Tensor | None) -> Tensor:
        """What is added to similarities ``(Q, n or 1, cells)``: -inf outside the window, and the prior."""
        device = self.values.device
        kind = (*tile.size, *reach.size, tile.top - reach.top, tile.left - reach.left)
        window = replace(self.group.window, prior_sigma_cells=None, prior_floor=None, prior_frames=0)
        mask, squared = _offsets_of(window, kind, device)
        if self.group.priors is None:
            return mask[:, None]
        factor, cap, frames = self.group.priors
        squared = squared[:, None]
        if motion is not None and self.group.moves:
            squared = torch.minimum(squared, _squared_from(kind, frames, motion))
        return torch.minimum(squared, cap).mul_(factor).add_(mask[:, None])


@lru_cache(maxsize=64)
def _offsets_of(window: Window, kind: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """What a tile's windows exclude, and squared offsets, both float32 ``(Q, cells)``.

    Tiles at the same distance from the frame's borders share them: a handful in all.
    """
    rows, columns = _axes(kind, device)
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    num_cells = kind[0] * kind[1]
    return window.mask(rows, columns).reshape(num_cells, -1), (rows**2 + columns**2).reshape(num_cells, -1)


def _squared_from(kind: tuple[int, ...], frames: Tensor, motion: Tensor) -> Tensor:
    """Squared distances ``(Q, n, cells)`` from where each cell was in each context frame by its motion."""
    rows, columns = _axes(kind, motion.device)
    down = rows[:, None].expand(-1, kind[1], -1).flatten(0, 1)
    right = columns[None].expand(kind[0], -1, -1).flatten(0, 1)
    vertical = (down[:, None] - frames * motion[0, :, None, None]) ** 2
    horizontal = (right[:, None] - frames * motion[1, :, None, None]) ** 2
    return (vertical[..., :, None] + horizontal[..., None, :]).flatten(2)


def _axes(kind: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Offsets (context - target) of a tile's rows, then columns: float32 ``(tile's, rectangle's)``."""
    tile_hw, reach_hw, first = kind[:2], kind[2:4], kind[4:]
    axes = []
    for length, reached, start in zip(tile_hw, reach_hw, first, strict=True):
        context = torch.arange(reached, device=device, dtype=torch.float32) - start
        axes.append(context - torch.arange(length, device=device, dtype=torch.float32)[:, None])
    return axes[0], axes[1]


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
        values = tuple((*windows[i].prior(temperature), float(windows[i].prior_frames)) for i in indices)
        has_prior, moves = any(value[0] for value in values), any(value[2] for value in values)
        groups.append(
            _Group(
                window,
                tuple(contexts[i].permute(1, 2, 0) for i in indices),
                torch.stack([labels[i] for i in indices], dim=1).to(torch.float32),
                _priors(values, contexts[0].device) if has_prior else None,
                moves,
            )
        )
    return groups


@lru_cache(maxsize=64)
def _priors(values: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """The rows of ``values`` as ``(3, n, 1)``; uploaded once per set of windows."""
    with torch.inference_mode(False):
        return torch.tensor(values).to(device).T[:, :, None]


def _strips(query: Tensor, groups: Sequence[_Group], max_bytes: int, row_multiple: int) -> Iterator[Strip]:
    """Cut the target into strips whose copied windows, and tiles whose similarities, fit half of ``max_bytes``."""
    height, width, channels = query.shape
    side = 16 if query.is_cuda else 8
    while side > 1 and _similarity_bytes((side, side), height, width, groups) > max_bytes / 2:
        side //= 2
    rows = max(1, round(_WHOLE_FRAME_CELLS // width / row_multiple)) * row_multiple
    if (
        all(_share_of_frame(group, side, height, width) >= _WHOLE_FRAME_SHARE for group in groups)
        and _similarity_bytes((rows, width), height, width, groups) <= max_bytes / 2
        and _copy_bytes(height, width, (height, width, channels), groups) <= max_bytes / 2
    ):
        yield Strip(0, height, 0, width, rows, whole=True)
        return
    rows = height
    while rows > side and _copy_bytes(rows, side, (height, width, channels), groups) > max_bytes / 2:
        rows = max(side, -(-rows // 2))
    for left in range(0, width, side):
        for top in range(0, height, rows):
            yield Strip(top, min(top + rows, height), left, min(left + side, width), side)


def _share_of_frame(group: _Group, side: int, height: int, width: int) -> float:
    """The share of the frame that the rectangle of windows around a tile is."""
    reach = math.inf if group.window.reach is None else group.window.reach
    return min(height, side + 2 * reach) * min(width, side + 2 * reach) / (height * width)


def _similarity_bytes(tile_hw: tuple[int, int], height: int, width: int, groups: Sequence[_Group]) -> int:
    cells = 0
    for group in groups:
        reach = group.window.reach
        rows = height if reach is None else min(height, tile_hw[0] + 2 * reach)
        columns = width if reach is None else min(width, tile_hw[1] + 2 * reach)
        cells += len(group.keys) * rows * columns
    return 4 * cells * tile_hw[0] * tile_hw[1]


def _copy_bytes(rows: int, side: int, shape: tuple[int, int, int], groups: Sequence[_Group]) -> int:
    height, width, channels = shape
    cells = 0
    for group in groups:
        reach = group.window.reach
        if reach is not None:
            cells += len(group.keys) * min(height, rows + 2 * reach) * min(width, side + 2 * reach)
    return groups[0].keys[0].element_size() * cells * channels


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
