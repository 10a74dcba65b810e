"""Whole transformer blocks in bf16 on a CPU, for a frozen model: the same sums with less around them.

Beside ``blocks``, which serves every block, dtype and device:

* weights lie in oneDNN's own layout, so that no product rearranges them first;
* layer scales and the factor of the scores are part of the weights;
* the tokens of an image are padded once to whole vectors, and attention reads and writes its heads in place.

The residual stream and the norms stay in float32, as under autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.extract.backbone.request import Request

_VECTOR: Final = 32
_MOST_TOKENS: Final = 4096
"""Above it the scores of one head take more than 32 MB; ``blocks`` has attention that never stores them."""
_ROWS: Final = 2816
"""Rows that the layout is chosen for: four images of 280 x 490 px. Others are multiplied as well."""


def pack_blocks(blocks: Sequence[nn.Module]) -> list[CpuBlock]:
    """Every block of a model; empty where one has parts that :class:`CpuBlock` does not know."""
    has_layout = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    if not has_layout or not all(_is_plain(block) for block in blocks):
        return []
    return [CpuBlock(block) for block in blocks]


def is_served(tokens: Tensor) -> bool:
    """Whether :func:`run_blocks` may be used for tokens ``(B, N, D)``."""
    fits = _VECTOR <= tokens.shape[1] <= _MOST_TOKENS
    return fits and tokens.is_cpu and not torch.is_grad_enabled()


def run_blocks(blocks: Sequence[CpuBlock], tokens: Tensor, wanted: Request) -> Tensor:
    """Run the first blocks of a model.

    Args:
        blocks: They, from :func:`pack_blocks`.
        tokens: ``(B, N, D)``; see :func:`is_served`.
        wanted: Where what is asked of these layers is put.

    Returns:
        float32 ``(B, N, D)``.
    """
    count = tokens.shape[1]
    tokens = F.pad(tokens.float(), (0, 0, 0, -count % _VECTOR))
    for layer, block in enumerate(blocks):
        tokens, projected = block(tokens, count)
        for facet in wanted.projections(layer):
            wanted.raw[facet, layer] = block.projection(projected[:, :count], facet)
        if wanted.tokens(layer):
            wanted.raw["token", layer] = tokens[:, :count]
    return tokens[:, :count]


class CpuBlock:
    """One pre-norm block with packed weights. Later changes of the block's own weights are not seen.

    Args:
        block: A ``Block`` of timm, see :func:`pack_blocks`.
    """

    def __init__(self, block: Any) -> None:
        attention = block.attn
        self._heads, self._width = int(attention.num_heads), int(attention.head_dim)
        self._scale = float(attention.scale)
        self._first_norm, self._second_norm = block.norm1, block.norm2
        scale = torch.ones(attention.qkv.out_features)
        scale[: self._heads * self._width] = self._scale
        self._qkv = _packed(attention.qkv, scale)
        self._project = _packed(attention.proj, getattr(block.ls1, "gamma", None))
        self._hidden = _packed(block.mlp.fc1, None)
        self._out = _packed(block.mlp.fc2, getattr(block.ls2, "gamma", None))

    def __call__(self, tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Run the block.

        Args:
            tokens: float32 ``(B, N, D)``, padded to a whole number of vectors; not changed.
            count: Tokens of an image without the padding.

        Returns:
            The tokens after the block ``(B, N, D)``, new memory; the projections ``(B, N, 3 D)`` for
            :meth:`projection`.
        """
        projected = self._qkv(_normed(self._first_norm, tokens))
        tokens = tokens + self._project(self._attend(projected, count))
        hidden = torch.ops.aten.gelu_(self._hidden(_normed(self._second_norm, tokens)))
        return tokens.add_(self._out(hidden)), projected

    def projection(self, projected: Tensor, facet: str) -> Tensor:
        """The ``query``, ``key`` or ``value`` bf16 ``(B, N, D)``, without the factor of the scores."""
        third = projected.chunk(3, dim=-1)[("query", "key", "value").index(facet)]
        return third / self._scale if facet == "query" else third

    def _attend(self, projected: Tensor, count: int) -> Tensor:
        """Softmax attention ``(B, N, D)`` from the projections ``(B, N, 3 D)``."""
        batch, length, _ = projected.shape
        parts = projected.view(batch, length, 3, self._heads, self._width)
        mixed = projected.new_empty(batch, length, self._heads, self._width)
        scores = projected.new_empty(length, length)
        shares = torch.empty_like(scores)
        for image in range(batch):
            for head in range(self._heads):
                query, key, value = parts[image, :, :, head].unbind(1)
                torch.mm(query, key.T, out=scores)
                scores[:, count:] = float("-inf")
                torch.softmax(scores, dim=-1, out=shares)
                torch.mm(shares, value, out=mixed[image, :, head])
        return mixed.flatten(2)


def _normed(norm: nn.LayerNorm, tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, norm.normalized_shape, norm.weight, norm.bias, norm.eps).bfloat16()


def _packed(layer: nn.Linear, scale: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A linear layer in bf16 whose outputs ``(..., D)`` are scaled by ``(D,)``."""
    factor = torch.ones(layer.out_features) if scale is None else scale.detach().float().cpu()
    weight = (layer.weight.detach().float() * factor[:, None]).bfloat16()
    bias = None if layer.bias is None else (layer.bias.detach().float() * factor).bfloat16()
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)

    def multiply(rows: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
        return product

    return multiply


def _is_plain(block: Any) -> bool:
    """Whether a block is norm, attention, layer scale, norm, MLP, layer scale as DINO's and DINOv2's are."""
    parts: tuple[Any, Any] = getattr(block, "attn", None), getattr(block, "mlp", None)
    attention, mlp = parts
    if tuple(type(part).__name__ for part in (block, *parts)) != ("Block", "Attention", "Mlp"):
        return False
    norms = (block.norm1, block.norm2)
    linear = (attention.qkv, attention.proj, mlp.fc1, mlp.fc2)
    nothing = (attention.q_norm, attention.k_norm, getattr(attention, "norm", nn.Identity()), mlp.norm)
    return (
        all(isinstance(norm, nn.LayerNorm) for norm in norms)
        and all(isinstance(layer, nn.Linear) for layer in linear)
        and all(isinstance(layer, nn.Identity) for layer in nothing)
        and getattr(attention, "gate", None) is None
        and isinstance(mlp.act, nn.GELU)
        and mlp.act.approximate == "none"
    )
