"""A frame from a reader that finds frames by their index and knows nothing of damage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor


@dataclass(frozen=True, slots=True)
class IndexedFrame:
    """A frame with its place, or with no image where the reader could not go on.

    Attributes:
        image: uint8 ``(H, W, 3)``, or None.
        index: 0-based index in the source.
        seconds: Presentation time, 0 for frame 0.
        duration_seconds: For how long it is shown; None if unknown.
        on_device: The image on the card that decoded it; None where the CPU did.
    """

    image: npt.NDArray[np.uint8] | None
    index: int
    seconds: float
    duration_seconds: float | None = None
    on_device: Tensor | None = None
