"""Model input sizes, and which pixels each resizing method looks at."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.core.errors import ConfigError
from stages.extract.resize import ResizeMethod, bound_input_size, count_cells, model_input_size, resize_image


@pytest.mark.parametrize(
    ("image_hw", "short", "patch", "expected"),
    [
        ((480, 854), 476, 14, (476, 840)),
        ((480, 854), 480, 14, (476, 840)),
        ((720, 1280), 280, 14, (280, 490)),
        ((1280, 720), 280, 14, (490, 280)),
        ((480, 480), 224, 16, (224, 224)),
        ((100, 333), None, 14, (98, 322)),
    ],
)
def test_both_sides_are_whole_patches(
    image_hw: tuple[int, int], short: int | None, patch: int, expected: tuple[int, int]
) -> None:
    assert model_input_size(image_hw, short, patch) == expected


@pytest.mark.parametrize(("width", "expected"), [(854, 832), (910, 896), (1152, 1152)])
def test_the_dino_protocol_keeps_480_and_rounds_the_long_side_to_64(width: int, expected: int) -> None:
    assert model_input_size((480, width), 480, 16, 64) == (480, expected)


def test_less_than_a_patch_is_an_error_that_names_the_mend() -> None:
    with pytest.raises(ConfigError, match="set short_side to at least 14"):
        model_input_size((480, 854), 13, 14)
    with pytest.raises(ConfigError, match="leaves no patch"):
        model_input_size((10, 300), None, 14)


def test_area_is_the_mean_of_the_covered_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    expected = image.reshape(3, 4, 5, 4, 3).mean(axis=(1, 3))
    assert np.abs(resize_image(image, (3, 5), "area") - expected).max() <= 0.5


def test_plain_bilinear_skips_pixels_and_antialiased_does_not() -> None:
    # One white row in sixteen: four-tap bilinear at half-pixel centers reads rows 7 and 8 only.
    image = np.zeros((16, 16, 3), np.uint8)
    image[2] = 255
    assert resize_image(image, (1, 16), "cv2_bilinear").max() == 0
    methods: tuple[ResizeMethod, ...] = ("area", "bilinear_antialias", "bicubic", "lanczos")
    assert [resize_image(image, (1, 16), m).max() > 0 for m in methods[:2]] == [True, True]


def test_pillow_methods_are_pillows_own() -> None:
    image = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((28, 14), Image.Resampling.BICUBIC))
    assert np.array_equal(resize_image(image, (14, 28), "bicubic"), expected)


def test_the_right_size_is_not_touched() -> None:
    image = np.zeros((14, 28, 3), np.uint8)
    assert resize_image(image, (14, 28), "lanczos") is image


@pytest.mark.parametrize("image_hw", [(1080, 1920), (480, 640), (1080, 2520), (2160, 3840), (1920, 1080)])
@pytest.mark.parametrize("short_side", [280, 476, 720])
def test_ordinary_videos_are_not_bounded(image_hw: tuple[int, int], short_side: int) -> None:
    wanted = model_input_size(image_hw, short_side, 14)
    assert bound_input_size(wanted, 14, 14, 16384) == wanted


@pytest.mark.parametrize("size_hw", [(280, 112000), (112000, 280), (14, 700000), (14, 14), (4200, 5600)])
@pytest.mark.parametrize("stride", [14, 7, 2])
@pytest.mark.parametrize("max_cells", [16384, 1000, 1])
def test_a_bounded_input_keeps_the_bound_whole_patches_and_its_orientation(
    size_hw: tuple[int, int], stride: int, max_cells: int
) -> None:
    height, width = bound_input_size(size_hw, 14, stride, max_cells)
    assert min(height, width) >= 14
    assert (height % 14, width % 14) == (0, 0)
    assert count_cells((height, width), 14, stride) <= max_cells
    assert (height <= size_hw[0], width <= size_hw[1]) == (True, True)
    if min(height, width) > 42:
        assert height / width == pytest.approx(size_hw[0] / size_hw[1], rel=0.4)
