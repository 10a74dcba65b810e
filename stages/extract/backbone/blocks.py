"""The parts of one transformer block, so that only those that are needed are computed.

Works on timm's own modules (``Block`` of VisionTransformer, ``EvaBlock`` of Eva, which DINOv3 uses) and their
weights. Attention is PyTorch's fused kernel (bf16 on a CPU: ``cpu_attention``); where one row of the attention
matrix is wanted, only that row is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn

from stages.extract.backbone.cpu_attention import attend_by_head, is_faster

_THIRDS: Final = {"query": 0, "key": 1, "value": 2}
_SEPARATE: Final = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}


def is_supported(block: nn.Module) -> bool:
    """Whether the block is a plain pre-norm block whose projections can be computed separately."""
    attention = getattr(block, "attn", None)
    has_projection = getattr(attention, "qkv", None) is not None or getattr(attention, "q_proj", None) is not None
    known = type(block).__name__ in ("Block", "EvaBlock")
    plain = type(attention).__name__ in ("Attention", "EvaAttention", "AttentionRope")
    return known and plain and has_projection and getattr(attention, "num_kv_groups", 1) == 1


def project(attention: Any, normed: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """The raw query, key and value projections that are asked for, and no others.

    Args:
        attention: The block's attention module.
        normed: ``(B, N, D)``, the block's input after its first norm.
        names: Any of ``query``, ``key``, ``value``.

    Returns:
        ``(B, N, heads * head_dim)`` by name, head after head.
    """
    if attention.qkv is None:
        return {name: getattr(attention, _SEPARATE[name])(normed) for name in names}
    weight, bias = attention.qkv.weight, _fused_bias(attention)
    if len(names) == len(_THIRDS):
        thirds = F.linear(normed, weight, bias).chunk(3, dim=-1)
        return {name: thirds[_THIRDS[name]] for name in names}
    size = weight.shape[0] // 3
    found = {}
    for name in names:
        rows = slice(_THIRDS[name] * size, (_THIRDS[name] + 1) * size)
        found[name] = F.linear(normed, weight[rows], None if bias is None else bias[rows])
    return found


def _fused_bias(attention: Any) -> Tensor | None:
    if getattr(attention, "q_bias", None) is not None:
        return torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
    bias: Tensor | None = attention.qkv.bias
    return bias


def _heads(attention: Any, projected: Tensor) -> Tensor:
    batch, tokens, _ = projected.shape
    return projected.reshape(batch, tokens, attention.num_heads, -1).transpose(1, 2)


def _rotate(attention: Any, heads: Tensor, rope: Tensor | None, rows: slice) -> Tensor:
    """Rotary embedding of the patch tokens; the prefix is not changed."""
    if rope is None or rows.stop is not None:
        return heads
    prefix = attention.num_prefix_tokens
    rotated = apply_rot_embed_cat(heads[:, :, prefix:], rope, half=getattr(attention, "rotate_half", False))
    return torch.cat([heads[:, :, :prefix], rotated], dim=2).type_as(heads)


_ALL: Final = slice(None)
_CLS: Final = slice(0, 1)


def attend(attention: Any, normed: Tensor, parts: dict[str, Tensor], rope: Tensor | None, rows: slice) -> Tensor:
    """Output of the attention module for the queries in ``rows`` (all, or the CLS token alone)."""
    query = _rotate(attention, attention.q_norm(_heads(attention, parts["query"][:, rows])), rope, rows)
    key = _rotate(attention, attention.k_norm(_heads(attention, parts["key"])), rope, _ALL)
    value = _heads(attention, parts["value"])
    if is_faster(query, key):
        mixed = attend_by_head(query, key, value, scale=attention.scale)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
    mixed = attention.norm(mixed.transpose(1, 2).flatten(2))
    if getattr(attention, "gate", None) is not None:
        mixed = mixed * attention.gate(normed[:, rows]).sigmoid()
    projected: Tensor = attention.proj(mixed)
    return projected


def cls_attention(attention: Any, parts: dict[str, Tensor], rope: Tensor | None) -> Tensor:
    """Attention probabilities of the CLS token over all tokens, ``(B, heads, N)`` in float32."""
    query = attention.q_norm(_heads(attention, parts["query"][:, _CLS]))
    key = _rotate(attention, attention.k_norm(_heads(attention, parts["key"])), rope, _ALL)
    logits = (query * attention.scale) @ key.transpose(-2, -1)
    row: Tensor = logits[:, :, 0].float()
    return row.softmax(dim=-1)


def after_attention(block: Any, tokens: Tensor, attended: Tensor) -> Tensor:
    """The rest of the block: both residual sums, layer scales and the MLP."""
    if hasattr(block, "gamma_1"):
        first, second = block.gamma_1, block.gamma_2
    else:
        first, second = getattr(block.ls1, "gamma", None), getattr(block.ls2, "gamma", None)
    tokens = _add_scaled(tokens, attended, first)
    return _add_scaled(tokens, block.mlp(block.norm2(tokens)), second)


def _add_scaled(tokens: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    """``tokens + scale * branch``; reuses the memory of ``branch`` where nothing else can need it.

    The branch is the fresh output of a linear layer. Working in place saves two passes over memory that has to be
    mapped first, which on a CPU costs as much as the sums themselves; the values are identical.
    """
    if torch.is_grad_enabled():
        return tokens + (branch if scale is None else scale * branch)
    if branch.dtype != tokens.dtype:
        return tokens + branch if scale is None else torch.addcmul(tokens, branch, scale.to(branch.dtype))
    if scale is not None:
        branch.mul_(scale)
    return branch.add_(tokens)
