"""Objects nobody gave: the instances of the co-segmented foreground that no known object covers yet."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from pipeline.formats.masks import VOID
from pipeline.records import Features, PartMap
from stages.ops.instances import split_instances

CLAIMED_SHARE = 0.5
"""An instance covered by known objects by this share or more is theirs."""


def new_objects(
    parts: PartMap, features: Features, known: npt.NDArray[np.uint8], next_id: int
) -> npt.NDArray[np.uint8] | None:
    """An index mask of the frame's new objects.

    Args:
        parts: The frame's foreground.
        features: Its features, by which the foreground is split into instances.
        known: uint8 ``(H, W)``, the objects known so far in this frame; their pixels are left to them.
        next_id: The first free id; there are none past 254.

    Returns:
        uint8 ``(H, W)``, or None where nothing is new.
    """
    descriptors = features.data.detach().to("cpu", torch.float32).numpy()
    instances = split_instances(parts.foreground, descriptors)
    if not instances.any():
        return None
    numbers = range(1, int(instances.max()) + 1)
    onehot = torch.stack([torch.from_numpy(instances == number) for number in numbers])
    # Each foreground pixel belongs to the instance nearest to it, so that masks end where the foreground does.
    owner = features.grid.upsample(onehot.to(torch.float32)).argmax(0).numpy()
    foreground = parts.index_mask > 0
    mask = np.zeros(known.shape, np.uint8)
    for instance in range(len(numbers)):
        pixels = foreground & (owner == instance)
        claimed = np.count_nonzero(known[pixels])
        if pixels.any() and claimed < CLAIMED_SHARE * np.count_nonzero(pixels) and next_id < VOID:
            mask[pixels & (known == 0)] = next_id
            next_id += 1
    return mask if mask.any() else None
