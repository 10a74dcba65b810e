"""Soft maps moved to the frame's edges by mean field inference in a small window, for the output only.

The pairwise model of Kraehenbuehl and Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials, 2011 (https://arxiv.org/abs/1210.5644), equation 3, with the bilateral kernel alone. Differs: only
uncertain pixels take part, and each has the neighbors of a small window, not of the whole frame. A pixel's label
follows the neighbors that have its color, and the cost is that of the border's length.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

RADIUS_PX = 8
STEP_PX = 2
SIGMA_PX = 4.0
SIGMA_COLOR = 3.0
"""Standard deviation of the color kernel, in L*a*b*."""

ITERATIONS = 5
CERTAIN = 0.95
"""Pixels that have a label with this probability keep it."""

LEAST = 0.02
"""Lower bound of a probability, so that its logarithm is finite."""

SPREAD = 0.5
"""Added to the sum of kernel values that divides them: a pixel without neighbors of its color follows none."""


def follow_edges(probs: Tensor, guide: npt.NDArray[np.float32], *, weight: float) -> Tensor:
    """Labels that agree with those of the neighbors of the same color.

    Args:
        probs: float32 ``(K, h, w)``, not negative; they need not sum to 1.
        guide: float32 ``(h, w, 3)``, RGB in [0, 1].
        weight: Of the neighbors against a pixel's own probabilities; 0 changes nothing.

    Returns:
        float32 ``(K, h, w)``, summing to 1 over K.

    >>> probs = torch.tensor([0.9, 0.9, 0.6, 0.4]).view(1, 1, 4)
    >>> guide = np.zeros((1, 4, 3), np.float32)
    >>> followed = follow_edges(torch.cat([probs, 1 - probs]), guide, weight=3.0)
    >>> followed.argmax(0).tolist()
    [[0, 0, 0, 0]]
    """
    height, width = probs.shape[1:]
    own = probs / probs.sum(0, keepdim=True).clamp(min=1e-6)
    band = (own.flatten(1).amax(0) < CERTAIN).nonzero()[:, 0]
    if not len(band):
        return own
    neighbors, kernel = _neighbors(band, guide, probs.device)
    seen = own.amax((1, 2)) > LEAST  # objects that are not in the frame cost nothing
    labels = own.flatten(1)[seen]
    unary = labels[:, band].clamp(min=LEAST).log()
    for _ in range(ITERATIONS):
        messages = torch.stack([(channel[neighbors] * kernel).sum(0) for channel in labels])
        labels[:, band] = torch.softmax(unary + weight * messages, dim=0)
    followed = torch.zeros_like(own)
    followed[seen] = labels.view(-1, height, width)
    return followed


def _neighbors(band: Tensor, guide: npt.NDArray[np.float32], device: torch.device) -> tuple[Tensor, Tensor]:
    """Flat positions and kernel values ``(neighbors, P)`` around the pixels at flat positions ``band``.

    Beyond the border the nearest pixel stands in.
    """
    height, width = guide.shape[:2]
    color = torch.from_numpy(cv2.cvtColor(guide, cv2.COLOR_RGB2LAB)).to(device).flatten(0, 1)
    steps = torch.arange(-RADIUS_PX, RADIUS_PX + 1, STEP_PX, device=device)
    down, right = (grid.flatten()[:, None] for grid in torch.meshgrid(steps, steps, indexing="ij"))
    others = ((down != 0) | (right != 0))[:, 0]
    down, right = down[others], right[others]
    rows, columns = band // width, band % width
    where = (rows + down).clamp(0, height - 1) * width + (columns + right).clamp(0, width - 1)
    apart = torch.stack([(channel[where] - channel[band]) ** 2 for channel in color.T]).sum(0)
    kernel = torch.exp(-apart / (2 * SIGMA_COLOR**2) - (down**2 + right**2) / (2 * SIGMA_PX**2))
    return where, kernel / (kernel.sum(0) + SPREAD)
