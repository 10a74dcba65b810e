"""Attention in bf16 on a CPU, head by head.

PyTorch's fused CPU kernel does not use the bf16 matrix instructions well (AVX-512 BF16, 701 tokens, 6 heads: 12 ms
per image and layer; here 8 ms, and at 2,041 tokens 96 and 55 ms). The scores of one head fit the second-level
cache at the sizes of video, and oneDNN's products are fastest on whole vectors, so the tokens are padded to a
multiple of 32.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

_VECTOR: Final = 32
_MOST_TOKENS: Final = 4096
"""Above it the scores of one head take more than 32 MB, and the fused kernel, which never stores them, is used."""


def is_faster(query: Tensor, key: Tensor) -> bool:
    """Whether :func:`attend_by_head` serves these tensors ``(B, heads, N, dim)``."""
    rows = query.shape[2]
    fits = _VECTOR <= rows == key.shape[2] <= _MOST_TOKENS
    plain = query.is_cpu and query.dtype == key.dtype == torch.bfloat16
    return fits and plain and not torch.is_grad_enabled()


def attend_by_head(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
    """Softmax attention of bf16 tensors, as ``F.scaled_dot_product_attention``.

    Args:
        query: ``(B, heads, N, dim)``.
        key: The same shape.
        value: The same shape.
        scale: Factor of the scores.

    Returns:
        bf16 ``(B, heads, N, dim)``, a view of a contiguous ``(B, N, heads, dim)``.
    """
    batch, heads, tokens, width = query.shape
    padding = -tokens % _VECTOR
    query, key, value = (F.pad(part, (0, 0, 0, padding)) for part in (query * scale, key, value))
    mixed = value.new_empty(batch, tokens, heads, width)
    scores = value.new_empty(tokens + padding, tokens + padding)
    for image in range(batch):
        for head in range(heads):
            torch.mm(query[image, head], key[image, head].T, out=scores)
            scores[:, tokens:] = float("-inf")
            mixed[image, :, head] = (scores.softmax(dim=-1) @ value[image, head])[:tokens]
    return mixed.transpose(1, 2)
