from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.formats.image_folder import load_image


def test_load_image_gives_rgb_that_can_be_written(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert np.array_equal(loaded, pixels)
    assert loaded.flags.writeable, "torch warns of arrays that are not"
