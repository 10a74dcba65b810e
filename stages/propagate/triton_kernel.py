"""Windowed top-k propagation as one Triton kernel: nothing of the affinity is ever written to memory.

One program works on a tile of target cells and a chunk of labels. It goes twice over the cells of all windows, block
by block: first it keeps the ``top_k`` largest similarities of every target cell, then it adds up the labels of all
cells that are at least as similar as the k-th. Both passes are the same code in one loop, so that a similarity has
the same bits in both, and ties count as in :func:`stages.propagate.propagation.propagate_labels`, whose results
these are. Products are of the inputs' dtype (float16, bfloat16 or float32) and are added up in float32.

Import only where :func:`stages.propagate.kernel_choice.has_triton` is true.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from stages.propagate.windows import Window

_NUM_PARAMETERS = 8
_ANYTHING = 3e38
_MAX_LABELS = 64
"""Labels that one program adds up."""


@triton.jit
def _block_similarity(
    query_ptr,
    keys_ptr,
    parameters_ptr,
    motion_ptr,
    context,
    cell,
    row,
    column,
    is_cell,
    first_row,
    first_column,
    across,
    block,
    height,
    width,
    channels,
    HAS_MOTION: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
    BLOCK_CHANNEL: tl.constexpr,
):
    """Similarities of the tile with a block of cells of a context, -inf outside the windows; and the cells."""
    flat = block + tl.arange(0, BLOCK_KEY)
    key_row = first_row + flat // across
    key_column = first_column + flat % across
    inside = (key_row < height) & (key_column < width)
    key = context * height * width + key_row * width + key_column
    total = tl.zeros((BLOCK_QUERY, BLOCK_KEY), dtype=tl.float32)
    for start in range(0, channels, BLOCK_CHANNEL):
        channel = start + tl.arange(0, BLOCK_CHANNEL)
        known = channel < channels
        mine = tl.load(
            query_ptr + cell[:, None] * channels + channel[None, :],
            mask=is_cell[:, None] & known[None, :],
            other=0.0,
        )
        theirs = tl.load(
            keys_ptr + key[None, :] * channels + channel[:, None],
            mask=inside[None, :] & known[:, None],
            other=0.0,
        )
        total = tl.dot(mine, theirs, total, input_precision="ieee")
    parameters = parameters_ptr + context * 8
    furthest = tl.load(parameters)
    largest_square = tl.load(parameters + 1)
    factor = tl.load(parameters + 2)
    cap = tl.load(parameters + 3)
    frames = tl.load(parameters + 4)
    down = (key_row[None, :] - row[:, None]).to(tl.float32)
    right = (key_column[None, :] - column[:, None]).to(tl.float32)
    squared = down * down + right * right
    reached = (tl.maximum(tl.abs(down), tl.abs(right)) <= furthest) & (squared <= largest_square)
    if HAS_MOTION:
        cells = height * width
        moved_down = tl.load(motion_ptr + cell, mask=is_cell, other=0.0)
        moved_right = tl.load(motion_ptr + cells + cell, mask=is_cell, other=0.0)
        off_down = down - frames * moved_down[:, None]
        off_right = right - frames * moved_right[:, None]
        squared = tl.minimum(squared, off_down * off_down + off_right * off_right)
    total += factor * tl.minimum(squared, cap)
    valid = reached & inside[None, :] & is_cell[:, None]
    return tl.where(valid, total, -float("inf")), key, inside


@triton.jit
def _propagate(
    query_ptr,
    keys_ptr,
    labels_ptr,
    parameters_ptr,
    motion_ptr,
    out_ptr,
    contexts,
    height,
    width,
    channels,
    num_labels,
    temperature,
    TOP_K: tl.constexpr,
    KEPT: tl.constexpr,
    KEEP_TIES: tl.constexpr,
    HAS_MOTION: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
    BLOCK_CHANNEL: tl.constexpr,
    BLOCK_LABEL: tl.constexpr,
):
    BLOCK_QUERY: tl.constexpr = SIDE * SIDE
    tiles_across = (width + SIDE - 1) // SIDE
    top = (tl.program_id(0) // tiles_across) * SIDE
    left = (tl.program_id(0) % tiles_across) * SIDE
    place = tl.arange(0, BLOCK_QUERY)
    row = top + place // SIDE
    column = left + place % SIDE
    is_cell = (row < height) & (column < width)
    cell = row * width + column
    label = tl.program_id(1) * BLOCK_LABEL + tl.arange(0, BLOCK_LABEL)
    rank = tl.arange(0, KEPT)
    best = tl.full((BLOCK_QUERY, KEPT), -float("inf"), dtype=tl.float32)
    votes = tl.zeros((BLOCK_QUERY, BLOCK_LABEL), dtype=tl.float32)
    weight_sum = tl.zeros((BLOCK_QUERY,), dtype=tl.float32)
    ties = tl.zeros((BLOCK_QUERY,), dtype=tl.int32)
    for turn in range(2):
        for context in range(contexts):
            reach = tl.load(parameters_ptr + context * 8 + 5).to(tl.int32)
            first_row = tl.maximum(top - reach, 0)
            first_column = tl.maximum(left - reach, 0)
            across = tl.minimum(left + SIDE + reach, width) - first_column
            count = (tl.minimum(top + SIDE + reach, height) - first_row) * across
            for block in range(0, count, BLOCK_KEY):
                similarity, key, inside = _block_similarity(
                    query_ptr, keys_ptr, parameters_ptr, motion_ptr, context, cell, row, column, is_cell,
                    first_row, first_column, across, block, height, width, channels,
                    HAS_MOTION, BLOCK_QUERY, BLOCK_KEY, BLOCK_CHANNEL,
                )  # fmt: skip
                if turn == 0:
                    # Of two sorted lists of a length, one turned round, the larger of each pair are the largest.
                    fresh = tl.topk(similarity, KEPT, dim=1)
                    best = tl.sort(tl.maximum(best, tl.flip(fresh, dim=1)), dim=1, descending=True)
                else:
                    largest = tl.maximum(tl.max(best, axis=1), -3e38)
                    least = tl.max(tl.where(rank[None, :] == TOP_K - 1, best, -float("inf")), axis=1)
                    chosen = (similarity >= least[:, None]) & (similarity > -float("inf"))
                    if not KEEP_TIES:
                        above = (best > least[:, None]) & (rank[None, :] < TOP_K)
                        room = TOP_K - tl.sum(above.to(tl.int32), axis=1)
                        equal = (chosen & (similarity == least[:, None])).to(tl.int32)
                        before = ties[:, None] + tl.cumsum(equal, axis=1)
                        chosen = chosen & ((equal == 0) | (before <= room[:, None]))
                        ties += tl.sum(equal, axis=1)
                    weight = tl.where(chosen, tl.exp((similarity - largest[:, None]) / temperature), 0.0)
                    weight_sum += tl.sum(weight, axis=1)
                    values = tl.load(
                        labels_ptr + key[:, None] * num_labels + label[None, :],
                        mask=inside[:, None] & (label < num_labels)[None, :],
                        other=0.0,
                    )
                    votes = tl.dot(weight, values, votes, input_precision="ieee")
    found = votes / tl.where(weight_sum > 0, weight_sum, 1.0)[:, None]
    where = label[None, :] * (height * width) + cell[:, None]
    tl.store(out_ptr + where, found, mask=is_cell[:, None] & (label < num_labels)[None, :])


def propagate_with_triton(
    target: Tensor,
    contexts: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    windows: Sequence[Window],
    top_k: int,
    temperature: float,
    keep_ties: bool,
    motion: Tensor | None = None,
    search_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Propagate labels; the arguments and the result are those of ``propagate_labels``, already checked.

    Without ``keep_ties``, of cells that are as similar as the k-th the first in the order of contexts, rows and
    columns vote. ``search_dtype`` is what descriptors are rounded to before they are multiplied.
    """
    height, width = target.shape[1:]
    query = target.to(search_dtype).permute(1, 2, 0).contiguous()
    keys = torch.stack([context.to(search_dtype).permute(1, 2, 0) for context in contexts])
    values = torch.stack([item.to(torch.float32).permute(1, 2, 0) for item in labels]).contiguous()
    num_labels = values.shape[-1]
    parameters = _parameters(tuple(windows), temperature, max(height, width), target.device)
    out = torch.empty((num_labels, height, width), dtype=torch.float32, device=target.device)
    side, block_label = 4, max(16, min(_MAX_LABELS, triton.next_power_of_2(num_labels)))
    kept = max(2, triton.next_power_of_2(top_k))
    grid = (triton.cdiv(height, side) * triton.cdiv(width, side), triton.cdiv(num_labels, block_label))
    _propagate[grid](
        query, keys, values, parameters, parameters if motion is None else motion.contiguous(), out,
        len(contexts), height, width, query.shape[-1], num_labels, temperature,
        TOP_K=top_k, KEPT=kept, KEEP_TIES=keep_ties, HAS_MOTION=motion is not None, SIDE=side,
        BLOCK_KEY=max(64, kept), BLOCK_CHANNEL=64, BLOCK_LABEL=block_label, enable_fp_fusion=False,
    )  # fmt: skip
    return out


@lru_cache(maxsize=256)
def _parameters(windows: tuple[Window, ...], temperature: float, whole: int, device: torch.device) -> Tensor:
    """What the kernel reads of every context's window, float32 ``(n, 8)``; uploaded once per set of windows."""
    with torch.inference_mode(False):
        rows = [_of_window(window, temperature, whole) for window in windows]
        return torch.tensor(rows, dtype=torch.float32).to(device)


def _of_window(window: Window, temperature: float, whole: int) -> list[float]:
    """Largest offset along an axis and largest squared one, the prior's factor and cap, frames of motion, reach."""
    radius = window.radius_cells or 0.0
    furthest, largest_square = _ANYTHING, _ANYTHING
    if radius and window.shape == "square":
        furthest = radius
    elif radius:
        square = np.float32(radius**2)
        largest_square = float(square if window.inclusive else np.nextafter(square, np.float32(0)))
    factor, cap = window.prior(temperature)
    reach = whole if window.reach is None else window.reach
    values = [furthest, largest_square, factor, min(cap, _ANYTHING), float(window.prior_frames), float(reach)]
    return [*values, *[0.0] * (_NUM_PARAMETERS - len(values))]


def compile_for(capability: int, dtype: str = "fp16", top_k: int = 5) -> Any:
    """Compile the kernel for a card that need not be here, for example ``compile_for(90)`` for an H100."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointer = {"query_ptr": f"*{dtype}", "keys_ptr": f"*{dtype}"}
    signature = {
        **pointer, "labels_ptr": "*fp32", "parameters_ptr": "*fp32", "motion_ptr": "*fp32", "out_ptr": "*fp32",
        "contexts": "i32", "height": "i32", "width": "i32", "channels": "i32", "num_labels": "i32",
        "temperature": "fp32",
    }  # fmt: skip
    constants = {
        "TOP_K": top_k, "KEPT": max(2, triton.next_power_of_2(top_k)), "KEEP_TIES": True, "HAS_MOTION": True,
        "SIDE": 4, "BLOCK_KEY": 64, "BLOCK_CHANNEL": 64, "BLOCK_LABEL": 16,
    }  # fmt: skip
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        fn=_propagate, signature=signature, constexprs={(_argument(n),): v for n, v in constants.items()}
    )
    return triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"enable_fp_fusion": False},
    )


def _argument(name: str) -> int:
    return list(_propagate.arg_names).index(name)
