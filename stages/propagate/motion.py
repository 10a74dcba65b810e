"""The motion of every cell since an earlier frame, measured by the matches of its features.

A prior around zero motion helps where objects stand still or the camera follows them, and loses what crosses the
picture; a second prior around the measured motion keeps that too. A median over the neighbors removes outliers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.propagate.kernel_choice import Kernel
from stages.propagate.propagation import propagate_labels
from stages.propagate.windows import Window

MATCHES = 3
TEMPERATURE = 0.03


def measure_motion(
    target: Tensor, earlier: Tensor, window: Window, *, max_bytes: int, kernel: Kernel = "auto"
) -> Tensor:
    """Where each cell of a frame was in an earlier frame.

    Args:
        target: float32 ``(C, h, w)``, L2-normalized.
        earlier: The same of the earlier frame.
        window: The cells to compare with.
        max_bytes: Limit for the working memory.
        kernel: See :func:`stages.propagate.propagation.propagate_labels`.

    Returns:
        float32 ``(2, h, w)``: offset (down, right) in cells from the cell to its match in the earlier frame: the
        mean of its best matches, then the median of 3 x 3 cells.
    """
    height, width = target.shape[1:]
    rows = torch.arange(height, dtype=torch.float32, device=target.device)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.float32, device=target.device).expand(height, width)
    positions = torch.stack([rows, columns])
    matched = propagate_labels(
        target,
        [earlier],
        [positions],
        windows=window,
        top_k=MATCHES,
        temperature=TEMPERATURE,
        keep_ties=False,
        max_bytes=max_bytes,
        kernel=kernel,
    )
    return median_filter(matched - positions)


def median_filter(maps: Tensor) -> Tensor:
    """The median over 3 x 3 cells of maps ``(K, h, w)``, the border repeated.

    >>> median_filter(torch.tensor([[[0.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 0.0]]])).amax().item()
    0.0
    """
    padded = F.pad(maps[None], (1, 1, 1, 1), mode="replicate")[0]
    around = padded.unfold(1, 3, 1).unfold(2, 3, 1)
    return around.flatten(3).median(dim=3).values
