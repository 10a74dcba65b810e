"""Objects found without labels: instances of the co-segmented foreground, and corrections of known objects."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from pipeline.core.records import Features, PartMap
from pipeline.formats.masks import VOID
from stages.propagate.instances import split_instances

KNOWN_SHARE = 0.5
"""An instance of which known objects cover this share or more is not a new object."""

SOLE_SHARE = 0.8
"""An instance is assigned to an object that has this share of what known objects cover of it."""

CORRECTION_IOU = 0.5
"""From this IoU on an object's instances become its mask; below, either of the two may be wrong."""

IndexMask = npt.NDArray[np.uint8]


def find_objects(parts: PartMap, features: Features, known: IndexMask, next_id: int) -> IndexMask | None:
    """An index mask of the objects found in a frame: new ones, and known ones whose mask it corrects.

    Args:
        parts: The frame's foreground.
        features: Its features, which split the foreground into instances.
        known: uint8 ``(H, W)``, the objects known so far, as propagated to this frame.
        next_id: The first free id; there are none past 254.

    Returns:
        uint8 ``(H, W)``, or None without anything new or better. New objects never take pixels of known ones.
    """
    mask = np.zeros(known.shape, np.uint8)
    assigned: dict[int, npt.NDArray[np.bool_]] = {}
    for pixels in _instances(parts, features):
        owners = np.bincount(known[pixels], minlength=2)
        covered = int(owners[1:].sum())
        if covered < KNOWN_SHARE * np.count_nonzero(pixels):
            if next_id < VOID:
                mask[pixels & (known == 0)] = next_id
                next_id += 1
        elif owners[1:].max() >= SOLE_SHARE * covered:
            owner = int(owners[1:].argmax()) + 1
            assigned[owner] = assigned.get(owner, np.zeros(known.shape, bool)) | pixels
    for owner, pixels in assigned.items():
        propagated = known == owner
        if np.count_nonzero(pixels & propagated) >= CORRECTION_IOU * np.count_nonzero(pixels | propagated):
            mask[pixels & (propagated | (known == 0))] = owner
    return mask if mask.any() else None


def _instances(parts: PartMap, features: Features) -> list[npt.NDArray[np.bool_]]:
    """The pixels of each instance of the foreground."""
    descriptors = features.data.detach().to("cpu", torch.float32).numpy()
    instances = split_instances(parts.foreground, descriptors)
    if not instances.any():
        return []
    numbers = range(1, int(instances.max()) + 1)
    onehot = torch.stack([torch.from_numpy(instances == number) for number in numbers])
    # Each foreground pixel belongs to the instance nearest to it, so that masks end where the foreground does.
    owner = features.grid.upsample(onehot.to(torch.float32)).argmax(0).numpy()
    foreground = parts.index_mask > 0
    found = [foreground & (owner == instance) for instance in range(len(numbers))]
    return [pixels for pixels in found if pixels.any()]
