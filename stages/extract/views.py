"""Pictures of features: joint PCA, saliency, similarity to a point, norms.

Everything that scales colors (the basis of the PCA, the range of norms) is fixed from a sample of the whole video
before the first picture is drawn, so a color means the same in every frame and nothing flickers.

PCA view: Amir et al. 2021, figure 2 (one basis for all images, descriptors centered and not normalized).
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.errors import ConfigError
from pipeline.core.grid import PatchGrid
from pipeline.core.records import Features

_LOW, _HIGH = 0.01, 0.99
_KEPT_PER_FRAME = 512

HEAT = cv2.COLORMAP_INFERNO
"""OpenCV's map of heat maps: its brightness grows with the value, also in gray."""


class JointPca:
    """Principal components of the descriptors of many frames, added frame by frame.

    Only sums are kept, and up to 512 descriptors per frame to set the color ranges. :meth:`fit` ends the
    collection; colors are the same function of the descriptor from then on.
    """

    def __init__(self, first_component: int = 0) -> None:
        """Collect for a picture of three components from ``first_component`` (0-based) on."""
        self._first = first_component
        self._count = 0
        self._sum: Tensor | None = None
        self._outer: Tensor | None = None
        self._kept: list[Tensor] = []

    def update(self, data: Tensor) -> None:
        """Add a feature map ``(C, h, w)``."""
        points = data.flatten(1).T.double()
        if self._sum is None or self._outer is None:
            self._sum, self._outer = torch.zeros_like(points[0]), torch.zeros_like(points.T @ points)
        self._count += len(points)
        self._sum += points.sum(dim=0)
        self._outer += points.T @ points
        self._kept.append(points[:: max(1, len(points) // _KEPT_PER_FRAME)].float())

    def fit(self) -> None:
        """Fix the basis and the range of every component: its 1st to 99th percentile over the sample.

        Raises:
            ConfigError: Nothing was added, or the features have too few channels.
        """
        if self._sum is None or self._outer is None:
            raise ConfigError("there is no frame to compute the principal components from")
        if len(self._sum) < self._first + 3:
            raise ConfigError(f"features of {len(self._sum)} channels have no component {self._first + 3}")
        self.mean = (self._sum / self._count).float()
        covariance = self._outer / self._count - torch.outer(self._sum, self._sum) / self._count**2
        _, vectors = torch.linalg.eigh(covariance)
        basis = vectors.flip(-1)[:, self._first : self._first + 3].float()
        # An eigenvector has no sign: the largest entry is made positive, so that two runs have the same colors.
        largest = basis.abs().argmax(dim=0)
        self.basis = basis * basis[largest, torch.arange(3, device=basis.device)].sign()
        projected = (torch.cat(self._kept) - self.mean) @ self.basis
        ends = torch.tensor([_LOW, _HIGH], device=projected.device)
        self.low, self.high = projected.quantile(ends, dim=0)
        self._kept = []

    def colors(self, data: Tensor) -> Tensor:
        """Red, green and blue ``(3, h, w)`` in [0, 1] of a feature map ``(C, h, w)``."""
        projected = (data.float() - self.mean[:, None, None]).flatten(1).T @ self.basis
        scaled = (projected - self.low) / (self.high - self.low).clamp_min(1e-12)
        colors: Tensor = scaled.clamp(0, 1).T.reshape(3, *data.shape[1:])
        return colors


class CenteredSample:
    """The mean descriptor of a sample of frames, and how their descriptors lie around it.

    Descriptors of a Vision Transformer share a large common part (keys of the last block of DINOv2 have a cosine
    of 0.86 between any two cells of a video), which hides what tells cells apart. It is subtracted before norms
    and cosines are shown, and these are stretched to the range they have in the sample. Up to 512 descriptors per
    frame are kept.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sum: Tensor | None = None
        self._kept: list[Tensor] = []

    def update(self, data: Tensor) -> None:
        """Add a feature map ``(C, h, w)``."""
        points = data.float().flatten(1).T
        total = points.double().sum(dim=0)
        self._sum = total if self._sum is None else self._sum + total
        self._count += len(points)
        self._kept.append(points[:: max(1, len(points) // _KEPT_PER_FRAME)].clone())

    def fit(self) -> None:
        """Fix the mean, and the range of distances from it: the 1st to the 99th percentile of the sample.

        Raises:
            ConfigError: Nothing was added.
        """
        if self._sum is None:
            raise ConfigError("there is no frame to compute the mean descriptor from")
        self.mean = (self._sum / self._count).float()
        self._points = torch.cat(self._kept) - self.mean
        self._kept = []
        self.norm_range = _range(self._points.norm(dim=1), _LOW, _HIGH)

    def centered(self, features: Features) -> Features:
        """The features less the mean descriptor, float32."""
        return replace(features, data=features.data.float() - self.mean[:, None, None])

    def norms(self, features: Features) -> Tensor:
        """The distance of every cell ``(h, w)`` from the mean descriptor."""
        norms: Tensor = self.centered(features).data.norm(dim=0)
        return norms

    def similarity_range(self, descriptor: Tensor) -> tuple[float, float]:
        """The range of cosines to a normalized, centered descriptor ``(C,)`` in the sample.

        The upper end leaves out the 0.2 percent that are most similar, so that an object of a few cells is
        bright, too.
        """
        return _range(F.normalize(self._points, dim=1) @ descriptor, 0.02, 0.998)


def _range(values: Tensor, low: float, high: float) -> tuple[float, float]:
    ends = values.quantile(torch.tensor([low, high], device=values.device))
    return float(ends[0]), float(ends[1])


def stretch(values: Tensor, low_high: tuple[float, float]) -> Tensor:
    """Values as fractions of a range, cut to [0, 1]."""
    low, high = low_high
    return ((values - low) / max(high - low, 1e-12)).clamp(0, 1)


def check_point(xy: tuple[float, float], image_hw: tuple[int, int]) -> None:
    """Check that a point lies in the frame.

    Raises:
        ConfigError: It does not; says which values are valid.
    """
    if not (0 <= xy[0] < image_hw[1] and 0 <= xy[1] < image_hw[0]):
        raise ConfigError(
            f"point {xy[0]:g},{xy[1]:g} lies outside the frame; valid: x from 0 to {image_hw[1] - 1}, "
            f"y from 0 to {image_hw[0] - 1}"
        )


def descriptor_at(features: Features, xy: tuple[float, float]) -> Tensor:
    """The L2-normalized descriptor ``(C,)`` at pixel ``xy`` of the frame, bilinear between the cells.

    Raises:
        ConfigError: The point lies outside the frame.
    """
    grid = features.grid
    check_point(xy, grid.image_hw)
    cell = grid.pixels_to_cells(torch.tensor([[xy[0] + 0.5, xy[1] + 0.5]], device=features.data.device))
    size = torch.tensor([grid.grid_hw[1], grid.grid_hw[0]], device=cell.device)
    where = (cell * 2 / size - 1)[None, None]
    data = features.data.float()[None]
    sampled = F.grid_sample(data, where, mode="bilinear", padding_mode="border", align_corners=False)
    return F.normalize(sampled[0, :, 0, 0], dim=0)


def similarity_map(features: Features, descriptor: Tensor) -> Tensor:
    """Cosine of every cell ``(h, w)`` to a normalized descriptor ``(C,)``."""
    return torch.einsum("c,chw->hw", descriptor, F.normalize(features.data.float(), dim=0))


def paint_colors(colors: Tensor, grid: PatchGrid) -> npt.NDArray[np.uint8]:
    """``(3, h, w)`` in [0, 1] as a picture of the frame's size, uint8 ``(H, W, 3)``."""
    whole = grid.upsample(colors).clamp(0, 1) * 255
    picture: npt.NDArray[np.uint8] = whole.round().byte().permute(1, 2, 0).cpu().numpy()
    return picture


def paint_heat(
    values: Tensor, grid: PatchGrid, image: npt.NDArray[np.uint8], *, opacity: float = 0.65
) -> npt.NDArray[np.uint8]:
    """``(h, w)`` in [0, 1] as a heat map over the frame in gray, uint8 ``(H, W, 3)``."""
    whole = grid.upsample(values.float()[None])[0].clamp(0, 1) * 255
    heat = heat_colors(whole.round().byte().cpu().numpy())
    blended = cv2.addWeighted(heat, opacity, gray(image), 1 - opacity, 0)
    return np.asarray(blended, np.uint8)


def heat_colors(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The colors of a heat map, uint8 ``(H, W, 3)``, of values ``(H, W)``."""
    return np.asarray(cv2.cvtColor(cv2.applyColorMap(values, HEAT), cv2.COLOR_BGR2RGB), np.uint8)


def gray(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The image without its colors, uint8 ``(H, W, 3)``, so that only colors that mean something are seen."""
    return np.asarray(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)
