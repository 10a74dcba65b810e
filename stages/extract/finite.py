"""Finding features that are NaN or infinite, at the price of one sum per facet and batch."""

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


@torch.inference_mode()
def first_not_finite(features: Sequence[Features], names: Sequence[str]) -> NotFinite | None:
    """The first image of a batch with a value that is not finite, or None.

    NaN and infinity survive a sum, so one sum per facet settles the usual case; only a suspicious batch is
    looked at value by value. On a GPU the host waits once per batch.

    Args:
        features: The images' features.
        names: Names of the facets: of ``Features.data``, then of ``Features.extra``.
    """
    maps = [list(_maps(item, names).values()) for item in features]
    sums = torch.stack([torch.stack([values.sum() for values in of_image]) for of_image in maps])
    if bool(sums.isfinite().all()):
        return None
    for image, item in enumerate(features):
        for facet, values in _maps(item, names).items():
            wrong = int((~values.isfinite()).sum())
            if wrong:
                return NotFinite(image, facet, wrong, values.numel())
    return None


def _maps(item: Features, names: Sequence[str]) -> dict[str, Tensor]:
    return {names[0]: item.data, **{name: item.extra[name] for name in names[1:]}}
