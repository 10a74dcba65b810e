"""Position embeddings for other grids than the pretrained one, in the references' conventions.

Let the embedding be an M x M map and the grid h x w. It is used unchanged where the number of patches is the
pretrained one and the input is square, and resized bicubically (a = -0.75, half-pixel centers) otherwise:

* ``dino``: by the scale factors ``(h + 0.1) / M`` and ``(w + 0.1) / M``, which also place the samples, so output
  cell ``i`` reads at ``(i + 0.5) * M / (h + 0.1) - 0.5``. No antialiasing. DINO, iBOT, DINOv2 without registers.
* ``timm``: to the size h x w, with antialiasing. timm's models and DINOv2 with registers.
* ``sinder``: the scale factors of ``dino`` with antialiasing (the loader of SINDER).

The embedding of the CLS token is never changed.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.extract.backbone.registry import PositionConvention


def resize_position_embedding(
    embedding: Tensor,
    grid_hw: tuple[int, int],
    *,
    num_prefix: int,
    square_input: bool,
    convention: PositionConvention,
) -> Tensor:
    """The position embedding for a grid.

    Args:
        embedding: ``(1, num_prefix + M * M, D)``.
        grid_hw: Rows and columns of the grid.
        num_prefix: Leading entries that do not belong to a patch.
        square_input: Whether the input image is square; only then is a square grid of the pretrained size left
            unchanged.
        convention: See the module.

    Returns:
        ``(1, num_prefix + h * w, D)`` in the dtype of ``embedding``; computed in float32.
    """
    prefix, patches = embedding[:, :num_prefix], embedding[:, num_prefix:]
    side = math.isqrt(patches.shape[1])
    if side * side != patches.shape[1]:
        raise ValueError(f"a position embedding of {patches.shape[1]} patches is not square")
    if grid_hw[0] * grid_hw[1] == patches.shape[1] and square_input:
        return embedding
    as_map = patches.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if convention == "timm":
        resized = F.interpolate(as_map, size=grid_hw, mode="bicubic", antialias=True, align_corners=False)
    else:
        factors = ((grid_hw[0] + 0.1) / side, (grid_hw[1] + 0.1) / side)
        resized = F.interpolate(
            as_map,
            scale_factor=factors,
            mode="bicubic",
            antialias=convention == "sinder",
            align_corners=False,
            recompute_scale_factor=False,
        )
    if tuple(resized.shape[-2:]) != tuple(grid_hw):
        raise ValueError(f"the resized position embedding is {tuple(resized.shape[-2:])}, not {grid_hw}")
    resized = resized.flatten(2).transpose(1, 2).to(embedding.dtype)
    return torch.cat([prefix, resized], dim=1)
