"""The descriptors by which frames are compared: one facet, or several side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.errors import ConfigError
from pipeline.core.records import Features


def joint_descriptors(features: Features, facets: Sequence[str]) -> Tensor:
    """The facets, L2-normalized, side by side and normalized again: ``(C, h, w)``, channels last in memory.

    Args:
        features: Of one frame.
        facets: Names of ``features.extra``, "data" for ``features.data``; none for ``features.data`` alone.

    Raises:
        ConfigError: A facet that was not extracted.
    """
    maps = [features.data]
    if facets:
        missing = [name for name in facets if name not in features.extra and name != "data"]
        if missing:
            raise ConfigError(
                f"propagate.facets: '{missing[0]}' is not extracted; there are: data, "
                f"{', '.join(sorted(features.extra)) or 'no others'} (see extract.facets)"
            )
        maps = [features.data if name == "data" else features.extra[name] for name in facets]
    joint = torch.cat([F.normalize(values.to(torch.float32), dim=0) for values in maps])
    if len(maps) > 1:
        joint = joint / len(maps) ** 0.5
    return joint.permute(1, 2, 0).contiguous().permute(2, 0, 1)
