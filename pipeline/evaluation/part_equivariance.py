"""Whether parts keep their numbers when the picture is mirrored or enlarged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.core.image_views import central_crop, mirrored

ByteImage = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PartAgreement:
    """Counts of pixels of the true object.

    Attributes:
        same: Foreground in both pictures with the same part number.
        both: Foreground in both pictures.
        total: All pixels of the object that both pictures show.
    """

    same: int = 0
    both: int = 0
    total: int = 0

    def __add__(self, other: PartAgreement) -> PartAgreement:
        return PartAgreement(self.same + other.same, self.both + other.both, self.total + other.total)

    @property
    def share(self) -> float:
        """Of the pixels that are foreground in both, the share that keep their part number; 0 without any."""
        return self.same / self.both if self.both else 0.0

    @property
    def coverage(self) -> float:
        """Share of the object that is foreground in both."""
        return self.both / self.total if self.total else 0.0


def agreement(first: ByteImage, second: ByteImage, truth: npt.NDArray[np.bool_]) -> PartAgreement:
    """Compare two part masks of one picture.

    Args:
        first: uint8 ``(H, W)``, 0 is background.
        second: The same.
        truth: bool ``(H, W)``, the object.

    >>> a, b = np.array([[1, 1, 2, 0]], np.uint8), np.array([[1, 2, 2, 2]], np.uint8)
    >>> agreement(a, b, np.ones((1, 4), bool))
    PartAgreement(same=2, both=3, total=4)
    """
    both = truth & (first > 0) & (second > 0)
    return PartAgreement(int((both & (first == second)).sum()), int(both.sum()), int(truth.sum()))


def compare_views(
    parts: Sequence[ByteImage], truths: Sequence[npt.NDArray[np.bool_]]
) -> tuple[PartAgreement, PartAgreement]:
    """Agreement of the mirrored and of the enlarged frames with the plain ones.

    Args:
        parts: uint8 ``(H, W)`` of N frames, then of the N frames mirrored, then of the N frames enlarged.
        truths: bool ``(H, W)`` of the N frames.
    """
    count = len(truths)
    mirror, zoom = PartAgreement(), PartAgreement()
    for number, truth in enumerate(truths):
        plain, turned, large = (parts[number + shift * count] for shift in range(3))
        mirror += agreement(plain, mirrored(turned), truth)
        crop = central_crop(plain)
        small = cv2.resize(large, crop.shape[::-1], interpolation=cv2.INTER_NEAREST)
        zoom += agreement(crop, np.asarray(small, np.uint8), central_crop(truth.astype(np.uint8)) > 0)
    return mirror, zoom
