from __future__ import annotations

import numpy as np
import pytest

from pipeline.core.errors import ConfigError
from pipeline.local.labeled_set import IGNORED
from pipeline.local.perturbations import (
    BAND_SIGMA,
    Geometric,
    Photometric,
    band_noise,
    inverse,
    photometric_changes,
    radial_frequency,
)


@pytest.mark.parametrize("middle", [0.1, 0.5, 0.9])
def test_the_spectrum_of_band_noise_is_inside_the_band(middle: float) -> None:
    noise = band_noise((64, 96), middle, np.random.default_rng(0))
    power = np.abs(np.fft.fft2(noise, axes=(0, 1))).sum(axis=2) ** 2
    radius = radial_frequency((64, 96))
    inside = np.abs(radius - middle) <= 0.05
    assert power[~inside].sum() < 1e-20 * power.sum()
    assert noise.std() == pytest.approx(1.0)


def test_on_an_image_the_noise_of_every_band_is_equally_strong() -> None:
    gray = np.full((64, 64, 3), 128, np.uint8)
    for middle in (0.1, 0.5, 0.9):
        changed = Photometric("band", middle)(gray, "a").astype(np.float64)
        assert (changed - 128).std() == pytest.approx(255 * BAND_SIGMA, rel=0.02)


def test_noise_has_its_amount_and_depends_on_the_image_alone() -> None:
    gray = np.full((64, 64, 3), 128, np.uint8)
    noise = Photometric("noise", 0.1)
    first = noise(gray, "a").astype(np.float64)
    assert (first - 128).std() == pytest.approx(25.5, rel=0.03)
    assert (noise(gray, "a") == first).all()
    assert (noise(gray, "b") != first).any()


def test_blur_is_a_gaussian_of_its_amount() -> None:
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 255
    line = Photometric("blur", 2.0)(point, "").astype(np.float64).sum(axis=(0, 2))
    places = np.arange(41) - 20
    assert (line * places**2).sum() / line.sum() == pytest.approx(4.0, rel=0.25)


def checkered(size: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (size // 8, size // 8, 3)).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)


def test_pixels_go_where_the_matrix_says() -> None:
    image = checkered(64)
    shifted = Geometric("shift", 3).of_image(image)
    np.testing.assert_array_equal(shifted[3:, 3:], image[:-3, :-3])
    turned = Geometric("rotate", 90).of_image(image)
    np.testing.assert_array_equal(turned, np.rot90(image))
    doubled = Geometric("scale", 2).of_labels(image[..., 0].astype(np.int16))
    np.testing.assert_array_equal(doubled, image[16:48, 16:48, 0].repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize("change", [Geometric("shift", 5), Geometric("rotate", 33), Geometric("scale", 0.6)])
def test_the_inverse_brings_points_back(change: Geometric) -> None:
    points = np.random.default_rng(0).uniform(0, 50, (20, 2))
    matrix = change.matrix((40, 60))
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(inverse(matrix, moved), points, atol=1e-9)


def test_labels_from_outside_are_ignored() -> None:
    labels = np.ones((20, 20), np.int16)
    moved = Geometric("shift", 5).of_labels(labels)
    assert (moved[:5] == IGNORED).all()
    assert (moved[:, :5] == IGNORED).all()
    assert (moved[5:, 5:] == 1).all()


@pytest.mark.parametrize(("kind", "text"), [("blur", "0"), ("noise", "-1"), ("band", "1.5"), ("blur", "x")])
def test_impossible_amounts_are_refused(kind: str, text: str) -> None:
    with pytest.raises(ConfigError, match="positive numbers"):
        photometric_changes(kind, "--amounts", text)  # type: ignore[arg-type]
