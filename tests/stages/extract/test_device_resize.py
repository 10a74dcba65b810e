from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from stages.extract.device_resize import resize_batch
from stages.extract.resize import ResizeMethod, resize_image

SIZES = [((72, 128), (28, 49)), ((90, 160), (45, 80)), ((61, 47), (28, 42)), ((20, 30), (42, 56))]


@pytest.mark.parametrize(("image_hw", "size_hw"), SIZES)
@pytest.mark.parametrize("method", get_args(ResizeMethod))
def test_the_device_resizes_as_the_host_does(
    method: ResizeMethod, image_hw: tuple[int, int], size_hw: tuple[int, int]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, *image_hw, 3), dtype=np.uint8)
    found = resize_batch(torch.from_numpy(images), size_hw, method)
    want = np.stack([resize_image(image, size_hw, method) for image in images]).astype(np.float32)
    apart = np.abs(found.permute(0, 2, 3, 1).numpy() - want)
    assert found.shape == (2, 3, *size_hw)
    assert apart.max() <= 1
    # OpenCV rounds the weights of a linear interpolation to 11 bits.
    grows = size_hw[0] > image_hw[0]
    is_linear = method == "cv2_bilinear" or (method == "area" and grows)
    assert (apart > 0).mean() < (0.15 if is_linear else 0.05)


def test_a_frame_of_the_right_size_passes_unchanged() -> None:
    images = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).view(2, 4, 5, 3)
    assert torch.equal(resize_batch(images, (4, 5), "area"), images.permute(0, 3, 1, 2).float())
