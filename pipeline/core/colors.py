"""Colors by id: objects and parts are shown in the same colors in videos, pages and reports."""

from __future__ import annotations

import colorsys

import numpy as np
import numpy.typing as npt

_GOLDEN_RATIO = 0.61803398875


def id_colors(count: int, *, first_hue: float, saturation: float, value: float) -> npt.NDArray[np.uint8]:
    """Well separated colors for ids 1, 2, ...; id 0 (background) is black.

    Hues step by the golden ratio, so that neighboring ids differ clearly and the color of an id does not depend
    on how many there are.

    Returns:
        uint8 ``(count + 1, 3)`` RGB.

    >>> id_colors(2, first_hue=0.0, saturation=1.0, value=1.0).tolist()[:2]
    [[0, 0, 0], [255, 0, 0]]
    """
    rows = [(0.0, 0.0, 0.0)]
    rows += [colorsys.hsv_to_rgb((first_hue + i * _GOLDEN_RATIO) % 1.0, saturation, value) for i in range(count)]
    return np.round(np.array(rows) * 255).astype(np.uint8)


OBJECT_COLORS = id_colors(255, first_hue=0.58, saturation=0.80, value=1.0)
PART_COLORS = id_colors(255, first_hue=0.08, saturation=0.62, value=0.95)
