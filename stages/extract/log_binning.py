"""Log-binned descriptors: every cell also describes its surroundings, coarser with growing distance.

Amir et al. 2021, section 3.2: around each cell, the features of its neighbors are averaged over bins that grow
with the distance, and all bins are concatenated. The paper names three hierarchies and 17 bins; two levels
(windows of 1 and 3 cells) have 17, which is the default here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def log_bin(features: Tensor, hierarchy: int = 2) -> Tensor:
    """Concatenate each cell with averages of its surroundings.

    Level k averages windows of ``3**k`` cells, cells inside the grid only, and reads them at the eight
    neighbors ``3**k`` away (and at the cell itself on level 0). A position outside the grid reads the nearest
    cell inside.

    Args:
        features: ``(..., C, h, w)``, floating point.
        hierarchy: Number of levels, at least 1.

    Returns:
        ``(..., (1 + 8 * hierarchy) * C, h, w)``; bin b has the channels ``b * C`` to ``(b + 1) * C``. Bins go
        level by level, then by row offset, then by column offset.

    >>> log_bin(torch.ones(4, 5, 6)).shape
    torch.Size([68, 5, 6])

    Raises:
        ValueError: ``hierarchy`` is below 1.
    """
    if hierarchy < 1:
        raise ValueError(f"log binning needs at least one level, got {hierarchy}")
    batch = features.shape[:-3]
    maps = features.reshape(-1, *features.shape[-3:])
    height, width = maps.shape[-2:]
    bins: list[Tensor] = []
    for level in range(hierarchy):
        reach = 3**level
        averaged = maps if level == 0 else F.avg_pool2d(maps, reach, 1, reach // 2, count_include_pad=False)
        padded = F.pad(averaged, (reach, reach, reach, reach), mode="replicate")
        for down in (0, reach, 2 * reach):
            for right in (0, reach, 2 * reach):
                if level == 0 or (down, right) != (reach, reach):
                    bins.append(padded[..., down : down + height, right : right + width])
    return torch.cat(bins, dim=1).reshape(*batch, -1, height, width)
