"""Changes of an image that test features: blur, noise, noise of one frequency band, shift, rotation, scale.

Source: Analyzing Local Representations of Self-supervised Vision Transformers (2024), robustness of patch features
and patch retrieval under transformations. Noise of a frequency band: Park and Kim, How Do Vision Transformers
Work?, ICLR 2022 (https://arxiv.org/abs/2202.06709), figure 2: white noise is cut to a ring of frequencies.
What is done here: all amounts count in pixels of the image as the model sees it; the noise of every band has the
same standard deviation, after it was cut.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.core.errors import ConfigError
from pipeline.core.options import names_in
from pipeline.local.labeled_set import IGNORED, Image, Labels

PhotometricKind = Literal["blur", "noise", "band"]
GeometricKind = Literal["shift", "rotate", "scale"]
BAND_SIGMA: Final = 0.1
"""Standard deviation of the noise of a band, as a share of the range of pixel values."""
_BAND_WIDTH: Final = 0.1

Affine = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Photometric:
    """A change of pixel values.

    Attributes:
        kind: ``blur`` (Gaussian, the amount is its standard deviation in pixels), ``noise`` (Gaussian, the amount
            is its standard deviation as a share of the range of values), or ``band`` (noise whose frequencies lie
            in a ring, the amount is the middle of the ring as a share of the Nyquist frequency).
        amount: How much.
    """

    kind: PhotometricKind
    amount: float

    def __str__(self) -> str:
        return f"{self.kind} {self.amount:g}"

    def __call__(self, image: Image, seed: str) -> Image:
        """The changed image, uint8; the noise depends on ``seed`` and the kind of change alone."""
        if self.kind == "blur":
            return np.asarray(cv2.GaussianBlur(image, (0, 0), self.amount), np.uint8)
        rng = np.random.default_rng(zlib.crc32(f"{seed} {self}".encode()))
        if self.kind == "noise":
            added = rng.normal(0.0, self.amount, image.shape)
        else:
            added = band_noise((image.shape[0], image.shape[1]), self.amount, rng) * BAND_SIGMA
        return np.clip(np.round(image + 255 * added), 0, 255).astype(np.uint8)


def band_noise(
    image_hw: tuple[int, int], middle: float, rng: np.random.Generator, width: float = _BAND_WIDTH
) -> npt.NDArray[np.float64]:
    """Noise ``(H, W, 3)`` of standard deviation 1 whose frequencies lie in a ring.

    Args:
        image_hw: Size.
        middle: Middle of the ring as a share of the Nyquist frequency, in (0, 1].
        rng: Random numbers.
        width: Width of the ring, as a share of the Nyquist frequency.

    Raises:
        ConfigError: No frequency of an image of this size lies in the ring.
    """
    inside = np.abs(radial_frequency(image_hw) - middle) <= width / 2
    if not inside.any():
        raise ConfigError(f"band {middle:g}: an image of {image_hw} px (h, w) has no such frequency")
    spectrum = np.fft.fft2(rng.normal(size=(*image_hw, 3)), axes=(0, 1)) * inside[..., None]
    noise = np.fft.ifft2(spectrum, axes=(0, 1)).real
    scaled: npt.NDArray[np.float64] = noise / max(noise.std(), 1e-12)
    return scaled


def radial_frequency(image_hw: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Length of the frequency of every bin of the 2-D Fourier transform, as a share of the Nyquist frequency.

    >>> radial_frequency((4, 1)).ravel().tolist()
    [0.0, 0.5, 1.0, 0.5]
    """
    rows, columns = (np.fft.fftfreq(length) * 2 for length in image_hw)
    length: npt.NDArray[np.float64] = np.hypot(rows[:, None], columns[None])
    return length


@dataclass(frozen=True, slots=True)
class Geometric:
    """A change of place.

    Attributes:
        kind: ``shift`` (pixels to the right and down), ``rotate`` (degrees, counter-clockwise, about the center),
            or ``scale`` (a factor, about the center).
        amount: How much.
    """

    kind: GeometricKind
    amount: float

    def __str__(self) -> str:
        return f"{self.kind} {self.amount:g}"

    def matrix(self, image_hw: tuple[int, int]) -> Affine:
        """Where points go: float64 ``(2, 3)`` on continuous (x, y, 1); the image's size stays."""
        if self.kind == "shift":
            return np.array([[1.0, 0.0, self.amount], [0.0, 1.0, self.amount]])
        angle = np.deg2rad(self.amount) if self.kind == "rotate" else 0.0
        factor = self.amount if self.kind == "scale" else 1.0
        turn = factor * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        center = np.array([image_hw[1] / 2, image_hw[0] / 2])
        return np.concatenate([turn, (center - turn @ center)[:, None]], axis=1)

    def of_image(self, image: Image) -> Image:
        """The image moved; mirrored over its border where nothing comes from inside."""
        matrix = _for_opencv(self.matrix((image.shape[0], image.shape[1])))
        size = (image.shape[1], image.shape[0])
        # Shrinking with four taps would alias, and features would be compared on that.
        source = cv2.GaussianBlur(image, (0, 0), 0.5 / self.amount) if self._shrinks() else image
        moved = cv2.warpAffine(source, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        return np.asarray(moved, np.uint8)

    def of_labels(self, labels: Labels) -> Labels:
        """Labels moved by nearest pixels; ignored where nothing comes from inside."""
        matrix = _for_opencv(self.matrix((labels.shape[0], labels.shape[1])))
        size = (labels.shape[1], labels.shape[0])
        moved = cv2.warpAffine(
            labels, matrix, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=IGNORED
        )
        return np.asarray(moved, np.int16)

    def _shrinks(self) -> bool:
        return self.kind == "scale" and self.amount < 1


def _for_opencv(matrix: Affine) -> Affine:
    """The same map for coordinates that are whole at pixel centers, as OpenCV counts them."""
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ np.array([0.5, 0.5]) - 0.5
    return shifted


def inverse(matrix: Affine, points_xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Where points ``(..., 2)`` came from.

    >>> inverse(Geometric("scale", 2.0).matrix((4, 4)), np.array([[0.0, 2.0]])).tolist()
    [[1.0, 2.0]]
    """
    back: npt.NDArray[np.float64] = (points_xy - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    return back


def photometric_changes(kind: PhotometricKind, option: str, text: str) -> list[Photometric]:
    """The changes of one kind in a comma-separated option.

    Raises:
        ConfigError: Not positive numbers, or a band beyond the Nyquist frequency.
    """
    highest = 1.0 if kind == "band" else float("inf")
    return [Photometric(kind, amount) for amount in _amounts(option, text, highest)]


def geometric_changes(kind: GeometricKind, option: str, text: str) -> list[Geometric]:
    """The same for changes of place.

    Raises:
        ConfigError: Not positive numbers.
    """
    return [Geometric(kind, amount) for amount in _amounts(option, text, float("inf"))]


def _amounts(option: str, text: str, highest: float) -> Sequence[float]:
    try:
        amounts = [float(name) for name in names_in(text)]
    except ValueError:
        amounts = [0.0]
    if not all(0 < amount <= highest and np.isfinite(amount) for amount in amounts):
        limit = "" if highest == float("inf") else f" up to {highest:g}"
        raise ConfigError(f"{option} {text}: give positive numbers{limit}, separated by commas")
    return amounts


PHOTOMETRIC_KINDS: Final[tuple[PhotometricKind, ...]] = get_args(PhotometricKind)
GEOMETRIC_KINDS: Final[tuple[GeometricKind, ...]] = get_args(GeometricKind)
