"""Linear layers whose singular values alone can be trained or clamped.

With the thin decomposition W = U diag(S) V', the weight becomes U diag(S + e) V' with e the only parameter. In a
block these are the value part of the fused query-key-value layer (each third is decomposed on its own; queries and
keys stay), the attention's projection and the layers of the MLP.

Source: Wang, Zhang, Salzmann, SINDER: Repairing the Singular Defects of DINOv2, ECCV 2024: the trained
parameters, and the check that clamps singular values.
Differs from the reference: the weight is computed as W + U diag(e) V', the same matrix, so that a layer whose
values never changed keeps its bits. The paper does not say which rows of a fused layer are clamped together; here
the thirds are clamped separately, as they are decomposed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pipeline.core.errors import ConfigError


class SingularShift(nn.Module):
    """Parametrization of a weight by a shift of the singular values of some of its rows.

    Attributes:
        values: The singular values S before any shift, ``(k,)``.
    """

    weight: Tensor
    left: Tensor
    values: Tensor
    right: Tensor

    def __init__(self, weight: Tensor, rows: slice) -> None:
        super().__init__()
        left, values, right = torch.linalg.svd(weight.detach()[rows].float(), full_matrices=False)
        self._rows = rows
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("left", left.contiguous())
        self.register_buffer("values", values)
        self.register_buffer("right", right.contiguous())

    def forward(self, shift: Tensor) -> Tensor:
        """The weight with its singular values shifted by ``shift`` ``(k,)``."""
        moved = self.weight[self._rows] + (self.left * shift) @ self.right
        start, stop, _ = self._rows.indices(self.weight.shape[0])
        return torch.cat([self.weight[:start], moved, self.weight[stop:]])

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Zero shift."""
        return torch.zeros(len(self.values), dtype=torch.float32, device=weight.device)


def trainable_layers(block: nn.Module) -> Iterator[tuple[str, nn.Linear, slice]]:
    """The layers of a block whose singular values are trained: name, layer and the trained rows.

    Raises:
        ConfigError: The block has no attention with ``qkv`` or ``v_proj``, or no MLP.
    """
    modules = dict(block.named_modules())
    fused, value = modules.get("attn.qkv"), modules.get("attn.v_proj")
    if isinstance(fused, nn.Linear):
        yield "attn.qkv", fused, slice(fused.out_features // 3 * 2, None)
    elif isinstance(value, nn.Linear):
        yield "attn.v_proj", value, slice(None)
    else:
        raise ConfigError(f"a {type(block).__name__} has no attention layer 'qkv' or 'v_proj' to repair")
    rest = [name for name in modules if name == "attn.proj" or name.startswith("mlp.fc")]
    if "attn.proj" not in rest or len(rest) < 3:
        raise ConfigError(f"a {type(block).__name__} lacks one of attn.proj, mlp.fc1 and mlp.fc2")
    for name in rest:
        layer = modules[name]
        if isinstance(layer, nn.Linear):
            yield name, layer, slice(None)


def attach_shifts(blocks: Sequence[nn.Module]) -> list[dict[str, nn.Parameter]]:
    """Give every block's layers a trainable shift, zero at first; all other parameters are frozen.

    Returns:
        For every block, its shifts by the layer's name.
    """
    found: list[dict[str, nn.Parameter]] = []
    for block in blocks:
        layers = list(trainable_layers(block))
        block.requires_grad_(False)
        shifts = {}
        for name, layer, rows in layers:
            # Unsafe only means that the parameter's shape differs from the weight's.
            parametrize.register_parametrization(layer, "weight", SingularShift(layer.weight, rows), unsafe=True)
            parameter: Any = layer.parametrizations
            shifts[name] = parameter["weight"].original.requires_grad_(True)
        found.append(shifts)
    return found


def fold_shifts(blocks: Sequence[nn.Module]) -> None:
    """Turn every shifted layer back into a plain, frozen ``nn.Linear`` with the same output."""
    for block in blocks:
        for layer in [m for m in block.modules() if parametrize.is_parametrized(m, "weight")]:
            current: Any = layer.weight
            weight = current.detach().clone()
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            layer.weight = nn.Parameter(weight, requires_grad=False)


@torch.no_grad()
def clamp_singular_values(blocks: Sequence[nn.Module], limit: float) -> int:
    """Clamp the singular values of every linear layer of the blocks to ``limit``, in place.

    The three parts of a fused query-key-value layer are decomposed separately. A layer within the limit is not
    changed.

    Returns:
        How many singular values were clamped.

    Raises:
        ConfigError: A limit that is not positive.
    """
    if limit <= 0:
        raise ConfigError(f"the limit for singular values must be positive, got {limit}")
    cut = 0
    for block in blocks:
        for name, layer in block.named_modules():
            if not isinstance(layer, nn.Linear):
                continue
            parts = layer.weight.chunk(3) if name.endswith("qkv") else (layer.weight,)
            for part in parts:
                left, values, right = torch.linalg.svd(part.float(), full_matrices=False)
                above = values > limit
                if bool(above.any()):
                    part.copy_((left * values.clamp(max=limit)) @ right)
                    cut += int(above.sum())
    return cut
