"""Finding features that are NaN or infinite, at the price of one sum per facet and frame.

NaN and infinity survive a sum, so the sums settle the usual case, and come to the host with the batch's results;
only a suspicious batch is looked at value by value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.core.records import Features


@dataclass(frozen=True, slots=True)
class NotFinite:
    """Where the first value that is not finite was found.

    Attributes:
        image: Position in the batch.
        facet: Its name.
        count: Values of this facet and image that are not finite.
        total: Values of this facet and image.
    """

    image: int
    facet: str
    count: int
    total: int


def facet_sums(maps: Sequence[Tensor]) -> Tensor:
    """The sum of every facet ``(B, C, h, w)`` of every image, ``(B, facets)``: finite where all its values are."""
    return torch.stack([values.sum(dim=(1, 2, 3)) for values in maps], dim=1)


@torch.inference_mode()
def first_not_finite(features: Sequence[Features], names: Sequence[str]) -> NotFinite | None:
    """The first image of a batch with a value that is not finite, or None; looks at every value.

    Args:
        features: The images' features.
        names: Names of the facets: of ``Features.data``, then of ``Features.extra``.
    """
    for image, item in enumerate(features):
        for facet, values in _maps(item, names).items():
            wrong = int((~values.isfinite()).sum())
            if wrong:
                return NotFinite(image, facet, wrong, values.numel())
    return None


def _maps(item: Features, names: Sequence[str]) -> dict[str, Tensor]:
    return {names[0]: item.data, **{name: item.extra[name] for name in names[1:]}}
