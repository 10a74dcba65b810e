from __future__ import annotations

import cv2
import numpy as np
import torch

from pipeline.core.records import PatchGrid
from stages.propagate.descriptors import COLOR_CHANNELS, COLOR_PERIOD, add_color, color_descriptors

GRID = PatchGrid((16, 24), (4, 6), (4.0, 4.0), (2.0, 2.0))


def test_the_similarity_of_colors_is_the_mean_cosine_of_their_differences() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    got = color_descriptors(image, GRID).flatten(1)
    assert got.shape == (COLOR_CHANNELS, 24)
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) * np.array([0.5, 1, 1], np.float32)
    parts = lab.reshape(4, 2, 2, 6, 2, 2, 3).mean(axis=(2, 5))  # row, part row, column, part column, channel
    cells = parts.transpose(0, 2, 1, 3, 4).reshape(24, 12)
    want = np.cos(2 * np.pi / COLOR_PERIOD * (cells[:, None] - cells[None])).mean(axis=2)
    np.testing.assert_allclose((got.T @ got).numpy(), want, atol=1e-4)


def test_color_adds_its_weight_between_equal_cells_and_less_between_others() -> None:
    image = np.zeros((16, 24, 3), np.uint8)
    image[:, 12:] = (200, 60, 30)
    features = torch.nn.functional.normalize(torch.randn(8, 4, 6), dim=0)
    joint = add_color(features, image, GRID, weight=0.2)
    added = (joint.flatten(1).T @ joint.flatten(1)) - (features.flatten(1).T @ features.flatten(1))
    same = added.view(4, 6, 4, 6)[:, :3][:, :, :, :3]
    other = added.view(4, 6, 4, 6)[:, :3][:, :, :, 3:]
    torch.testing.assert_close(same, torch.full_like(same, 0.2), atol=1e-5, rtol=0)
    assert float(other.max()) < 0.15
    assert joint.permute(1, 2, 0).is_contiguous()
