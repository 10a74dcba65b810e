"""Common parts of a set of images, with the settings ``coseg`` has by default."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.core.arrays import IntArray, normalize_rows
from pipeline.images.image_cosegmentation import SetImage, SetOptions, SetResult, cosegment_images
from pipeline.images.image_sets import DescribedImage
from stages.cosegment.cosegmentation import KmeansOptions

_SAMPLE_INTERVAL = 10


def common_parts(images: Sequence[DescribedImage], backbone: str, num_parts: int) -> list[SetResult]:
    """Foreground and parts of images that were described with CLS attention.

    Args:
        images: At least one.
        backbone: DINO's saliency votes, as in Amir et al. 2021; for others the foreground is learned from it.
        num_parts: Number of parts.
    """
    options = SetOptions(
        kmeans=KmeansOptions(sample_interval=_SAMPLE_INTERVAL),
        method="vote" if backbone.startswith("dino_") else "discriminant",
        num_parts=num_parts,
    )
    cells = [SetImage(i.image, i.grid, normalize_rows(i.rows), i.saliency.ravel()) for i in images]
    return cosegment_images(cells, options)


def part_of_cells(result: SetResult, image: DescribedImage) -> IntArray:
    """The part at the center of every cell, int64 ``(h * w,)``; 0 is background."""
    parts = image.grid.sample_nearest(torch.from_numpy(result.parts))
    return np.asarray(parts.numpy().ravel(), np.int64)
