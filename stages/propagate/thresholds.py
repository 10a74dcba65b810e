"""From which label on a pixel is an object's: the lower the confidence, the earlier.

A pixel that is an object's with probability p adds p to the expected intersection of mask and object, and 1 - p
to their union. Their ratio J grows by it where p / (1 - p) > J: the best threshold is J / (1 + J), and not a half.
That is a factor of 1 / J on the object's map against the background's. With the confidence for J it is too large:
measured, its square root is better.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

ObjectWeight = float | Literal["confidence"]
LARGEST = 1.6
"""Of the factors: the threshold is 0.38 at least."""


def weights_of_objects(setting: ObjectWeight, confidence: Tensor) -> float | Tensor:
    """The factor on the objects' maps against the background's before the largest wins.

    Args:
        setting: ``propagate.object_weight``.
        confidence: float32 ``(K,)``.

    Returns:
        The setting, or for "confidence" one factor per object, ``(K, 1, 1)``.

    >>> import torch
    >>> weights = weights_of_objects("confidence", torch.tensor([1.0, 0.64, 0.2, 0.0]))
    >>> [round(value, 2) for value in weights.flatten().tolist()]
    [1.0, 1.25, 1.6, 1.6]
    """
    if setting != "confidence":
        return setting
    return confidence.clamp(min=LARGEST**-2).rsqrt().clamp(1, LARGEST)[:, None, None]
