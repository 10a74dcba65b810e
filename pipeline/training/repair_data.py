"""Images for the repair: resized to a short side, center-cropped to a square.

Source: Wang, Zhang, Salzmann, SINDER, ECCV 2024: bicubic, antialiased, 518 px.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.formats.image_folder import load_image


def load_square(path: Path, size_px: int) -> npt.NDArray[np.uint8]:
    """The central square of an image, its short side resized to ``size_px``.

    Returns:
        uint8 ``(size_px, size_px, 3)``, RGB.

    Raises:
        MediaError: The file is not a readable image.
    """
    image = Image.fromarray(load_image(path))
    scale = size_px / min(image.size)
    width, height = (max(size_px, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size_px) // 2, (height - size_px) // 2
    return np.array(image.crop((left, top, left + size_px, top + size_px)))
