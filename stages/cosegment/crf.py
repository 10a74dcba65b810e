"""A fully connected CRF on pixels: labels that follow the edges of the image.

Source: Kraehenbuehl and Koltun 2011, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials"
(https://arxiv.org/abs/1210.5644), mean-field inference, with the kernels and weights that Amir et al. 2021 refine
their parts with.

Differs from the reference: the bilateral filter runs on a sparse bilateral grid (Barron and Poole 2016, "The Fast
Bilateral Solver", section 3: splat, blur, slice) instead of a permutohedral lattice. Both approximate the same
Gaussian; the normalization below removes their different scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy import sparse

FloatArray = npt.NDArray[np.float32]

# A [1 2 1] blur has variance 1/2 cell, and rounding into cells and back adds 1/12 twice.
_CELL_VARIANCE = 0.5 + 2.0 / 12.0


@dataclass(frozen=True, slots=True)
class CrfOptions:
    """Kernels and iterations; the defaults are those of Amir et al.

    Attributes:
        smooth_sxy_px: Standard deviation of the smoothness kernel in pixels.
        smooth_weight: Its weight.
        edge_sxy_px: Spatial standard deviation of the appearance kernel in pixels.
        edge_srgb: Its standard deviation in color, of 0 to 255.
        edge_weight: Its weight.
        iterations: Mean-field steps.
    """

    smooth_sxy_px: float = 3.0
    smooth_weight: float = 50.0
    edge_sxy_px: float = 5.0
    edge_srgb: float = 13.0
    edge_weight: float = 15.0
    iterations: int = 10


def dense_crf(energy: FloatArray, image: npt.NDArray[np.uint8], options: CrfOptions | None = None) -> FloatArray:
    """Label probabilities after mean-field inference.

    Args:
        energy: float32 ``(L, H, W)``, unary energies; smaller is likelier.
        image: uint8 ``(H, W, 3)``.
        options: The kernels.

    Returns:
        float32 ``(L, H, W)``; sums to 1 over the labels.

    Raises:
        ValueError: The sizes differ.
    """
    options = options or CrfOptions()
    if energy.ndim != 3 or energy.shape[1:] != image.shape[:2]:
        raise ValueError(f"energies {energy.shape} do not lie on an image of {image.shape[:2]}")
    labels, height, width = energy.shape
    grid = _BilateralGrid(image, options.edge_sxy_px, options.edge_srgb)
    smooth_norm = _inverse_root(_gaussian(np.ones((1, height, width), np.float32), options.smooth_sxy_px))
    edge_norm = _inverse_root(grid.filter(np.ones((height * width, 1), np.float32)))
    probabilities = _softmax(-energy)
    for _ in range(options.iterations):
        smooth = smooth_norm * _gaussian(probabilities * smooth_norm, options.smooth_sxy_px)
        flat = probabilities.reshape(labels, -1).T
        edges = (edge_norm * grid.filter(flat * edge_norm)).T.reshape(labels, height, width)
        probabilities = _softmax(options.smooth_weight * smooth + options.edge_weight * edges - energy)
    return probabilities


class _BilateralGrid:
    """Gaussian filtering in (y, x, r, g, b) through the occupied cells of a coarse 5-D grid."""

    def __init__(self, image: npt.NDArray[np.uint8], sxy_px: float, srgb: float) -> None:
        height, width = image.shape[:2]
        size = np.array([sxy_px, sxy_px, srgb, srgb, srgb]) / np.sqrt(_CELL_VARIANCE)
        y, x = np.mgrid[0:height, 0:width]
        position = np.concatenate([np.stack([y, x], axis=-1), image], axis=-1).reshape(-1, 5)
        # One empty cell around the occupied ones keeps a neighbor's key from wrapping into the next row.
        cells = np.rint(position / size).astype(np.int64) + 1
        extent = cells.max(axis=0) + 2
        steps = np.concatenate([np.cumprod(extent[:0:-1])[::-1], [1]])
        keys, owner = np.unique(cells @ steps, return_inverse=True)
        ones = np.ones(len(owner), np.float32)
        self._splat = sparse.csr_matrix((ones, (owner.ravel(), np.arange(len(owner)))), (len(keys), len(owner)))
        self._slice = self._splat.T.tocsr()
        self._blurs = [_line_blur(keys, int(step)) for step in steps]

    def filter(self, values: FloatArray) -> FloatArray:
        """Filtered ``(N, L)`` values, N pixels in row-major order; the scale is arbitrary but fixed."""
        cells = self._splat @ values
        for blur in self._blurs:
            cells = blur @ cells
        return np.asarray(self._slice @ cells, np.float32)


def _line_blur(keys: npt.NDArray[np.int64], step: int) -> sparse.csr_matrix:
    """The [1 2 1] / 4 blur along one axis between the cells that exist."""
    count = len(keys)
    place = np.searchsorted(keys, keys + step).clip(max=count - 1)
    here = np.flatnonzero(keys[place] == keys + step)
    there = place[here]
    weights = np.concatenate([np.full(count, 0.5), np.full(2 * len(here), 0.25)]).astype(np.float32)
    rows = np.concatenate([np.arange(count), here, there])
    columns = np.concatenate([np.arange(count), there, here])
    return sparse.csr_matrix((weights, (rows, columns)), (count, count))


def _gaussian(maps: FloatArray, sigma_px: float) -> FloatArray:
    filtered = [cv2.GaussianBlur(m, (0, 0), sigma_px, borderType=cv2.BORDER_CONSTANT) for m in maps]
    return np.stack(filtered).astype(np.float32)


def _inverse_root(norms: FloatArray) -> FloatArray:
    return np.asarray(1.0 / np.sqrt(np.maximum(norms, 1e-20)), np.float32)


def _softmax(scores: FloatArray) -> FloatArray:
    exponents = np.exp(scores - scores.max(axis=0, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=0, keepdims=True), np.float32)
