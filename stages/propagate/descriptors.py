"""The descriptors by which frames are compared: one facet or several side by side, and the color of the cells."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.errors import ConfigError
from pipeline.core.host_copy import send_like
from pipeline.core.records import Features, PatchGrid

COLOR_PARTS = 2
"""Parts of a cell, along each side, whose mean colors are compared."""

COLOR_PERIOD = 80.0
"""Period of the similarity of colors, in L*a*b* with L* halved: colors half of it apart are opposite."""

COLOR_CHANNELS = 6 * COLOR_PARTS**2


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


def color_descriptors(image: npt.NDArray[np.uint8], grid: PatchGrid) -> Tensor:
    """The colors of the cells as unit vectors whose inner product is a similarity of colors.

    Each of L*/2, a* and b* becomes the cosine and sine of an angle, so that the inner product of two cells is the
    mean of ``cos(2 pi difference / COLOR_PERIOD)`` over the three and over the parts of a cell: a kernel that is
    a plain product, as the comparison of frames needs it (random features with one chosen frequency; Rahimi and
    Recht, Random Features for Large-Scale Kernel Machines, 2007).

    Args:
        image: uint8 ``(H, W, 3)``, RGB.
        grid: The cells.

    Returns:
        float32 ``(COLOR_CHANNELS, h, w)``, each cell of norm 1.
    """
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab[..., 0] /= 2
    parts = torch.from_numpy(grid.subdivided(COLOR_PARTS).cell_means(np.ascontiguousarray(lab.transpose(2, 0, 1))))
    angles = parts * (2 * math.pi / COLOR_PERIOD)
    waves = torch.cat([angles.cos(), angles.sin()])[:, None]
    return F.pixel_unshuffle(waves, COLOR_PARTS).flatten(0, 1) / math.sqrt(COLOR_CHANNELS / 2)


def add_color(descriptors: Tensor, image: npt.NDArray[np.uint8], grid: PatchGrid, *, weight: float) -> Tensor:
    """Descriptors ``(C, h, w)`` with the color of the cells as further channels.

    The similarity of two cells grows by ``weight`` where their colors are equal, and by less the more they differ.
    """
    color = send_like(color_descriptors(image, grid), descriptors) * math.sqrt(weight)
    joint = torch.cat([descriptors, color])
    return joint.permute(1, 2, 0).contiguous().permute(2, 0, 1)
