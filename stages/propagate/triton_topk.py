"""Windowed top-k propagation as one Triton kernel: nothing of the affinity is ever written to memory.

One program works on a tile of target cells and a chunk of labels. It goes twice over the cells of all windows,
block by block: first it keeps the ``top_k`` largest similarities of every target cell, then it adds up the labels
of all cells that are at least as similar as the k-th. Both passes are the same code in one loop, so that a
similarity has the same bits in both, and ties count as in
:func:`stages.propagate.propagation.propagate_labels`, whose results these are. Products are of the inputs' dtype
(float16, bfloat16 or float32) and are added up in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
def propagate_tile(
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
    """The labels of one tile of target cells, a chunk of them."""
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
