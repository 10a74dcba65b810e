"""What the cells of a frame or a window are described by: tokens and keys of two layers, centered and whitened.

Features of one frame share a large common part, so cosine similarity between raw cells hardly tells objects apart.
Each facet is centered and normalized, the facets are put side by side, and the result is projected on its leading
principal components. Divided by their standard deviations, shrunk towards their mean, distances between means
are those of Fisher's linear discriminant (Fisher 1936) with the scatter of the frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import eigh

from pipeline.core.arrays import FloatArray, IntArray, normalize_rows
from pipeline.core.grid import PatchGrid
from pipeline.core.records import Features, Frame
from pipeline.prompts.adjacency import grid_edges
from pipeline.prompts.random_walk import RandomWalker
from stages.extract import ExtractConfig, Extractor
from stages.extract.backbone.backbone import Backbone
from stages.extract.lift.choice import choose_lift

SHORT_SIDE_PX = 476
"""Short side of the whole frame as the backbone sees it."""
WINDOW_SIDE_PX = 392
"""The same for a window of it."""
NUM_COMPONENTS = 48
NUM_SAMPLED_CELLS = 2000
_COLOR_FLOOR = 0.5
"""Least median step of color between neighboring cells, in units of CIELAB, against frames of one color."""


@dataclass(frozen=True, slots=True)
class FrameDescription:
    """The cells of one frame, or of a window of one.

    Attributes:
        image: uint8 ``(H, W, 3)``, the frame.
        grid: Where the cells lie on it.
        whitened: float32 ``(N, d)``, one row per cell, row by row.
        directions: The rows of ``whitened`` at unit length.
        raw_directions: The same before whitening.
        strengths: float32 ``(N,)``: length of each row before whitening, 1 on average.
        colors: float32 ``(N, 3)``: mean color in CIELAB.
        edges: int64 ``(2, E)``: pairs of adjacent cells (8 neighbors).
        lengths: float32 ``(E,)``: distance of each pair in cells.
        steps: float32 ``(E,)``: dissimilarity of each pair; its median over the frame is 1.
        color_steps: float32 ``(E,)``: the same of the colors.
        walker: Random walks over the cells.
    """

    image: npt.NDArray[np.uint8]
    grid: PatchGrid
    whitened: FloatArray
    directions: FloatArray
    raw_directions: FloatArray
    strengths: FloatArray
    colors: FloatArray
    edges: IntArray
    lengths: FloatArray
    steps: FloatArray
    color_steps: FloatArray
    walker: RandomWalker

    def cell(self, x: float, y: float) -> int:
        """Number of the cell nearest to a pixel position."""
        column, row = (int(value) for value in self.grid.nearest_cells(torch.tensor([x, y], dtype=torch.float32)))
        return row * self.grid.grid_hw[1] + column

    def neighborhood(self, cell: int) -> IntArray:
        """A cell and its neighbors: one cell alone is noisy."""
        height, width = self.grid.grid_hw
        row, column = divmod(cell, width)
        cells = np.arange(height * width).reshape(height, width)
        return cells[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].ravel()


Describe = Callable[[npt.NDArray[np.uint8]], FrameDescription]
"""Describes an image, uint8 ``(H, W, 3)``."""


def prompt_facets(backbone: Backbone) -> tuple[str, ...]:
    """Tokens and keys of the last layer, and of the one at two thirds of the depth, which knows more of shape."""
    inner = 2 * backbone.num_layers // 3
    return ("token@-1:norm", "key@-1", f"token@{inner}", f"key@{inner}")


def describers(extractor: Extractor) -> tuple[Describe, Describe]:
    """What describes whole frames, and windows of them, with the backbone of the run's own extractor.

    The resolution and the facets are those the method was chosen for, whatever the run uses: a click needs finer
    cells than propagation, and one frame of them costs little.

    Args:
        extractor: Shares its backbone; reset it before it goes on with a video.
    """
    whole, window = (_extractor(extractor, side) for side in (SHORT_SIDE_PX, WINDOW_SIDE_PX))
    return (lambda image: describe_image(image, whole)), (lambda image: describe_image(image, window))


def _extractor(extractor: Extractor, short_side: int) -> Extractor:
    base, backbone = extractor.config, extractor.backbone
    settings = {
        "facets": prompt_facets(backbone),
        "short_side": short_side,
        "saliency": "none",
        "repair": "none",
        "batch_size": 1,
        "backbone": base.backbone,
        "device": base.device,
        "precision": base.precision,
        "position": base.position,
        "stride_px": base.stride_px,
        "weights": base.weights,
    }
    config = ExtractConfig.model_validate({**settings, "lift": "none"})
    plain = Extractor(config, backbone=backbone)
    if choose_lift("auto", backbone, plain.facets[0]) is None:
        return plain
    return Extractor(config.model_copy(update={"lift": "auto"}), backbone=backbone)


def describe_image(image: npt.NDArray[np.uint8], extractor: Extractor) -> FrameDescription:
    """The description of an image, uint8 ``(H, W, 3)``; the extractor is reset."""
    extractor.reset()
    packet = next(iter(extractor(iter([Frame(image, 0, 0.0)]))))
    assert packet.features is not None
    return describe(image, packet.features)


def describe(image: npt.NDArray[np.uint8], features: Features) -> FrameDescription:
    """The description of a frame from its features: the main facet and all further ones.

    Args:
        image: uint8 ``(H, W, 3)``.
        features: Of that frame.
    """
    blocks = []
    for values in (features.data, *features.extra.values()):
        rows = values.flatten(1).T.float().cpu().numpy()
        blocks.append(normalize_rows(rows - rows.mean(axis=0)))
    joined = np.concatenate(blocks, axis=1) / np.sqrt(len(blocks))
    projected, variances = _principal_components(joined.astype(np.float32))
    whitened = projected / np.sqrt(variances + max(float(variances.mean()), 1e-12))
    edges, lengths = grid_edges(features.grid.grid_hw)
    unit = normalize_rows(projected)
    steps = (1 - np.einsum("ed,ed->e", unit[edges[0]], unit[edges[1]])).clip(min=0)
    norms = np.linalg.norm(projected, axis=1)
    colors = _cell_colors(image, features.grid.grid_hw)
    color_steps = np.linalg.norm(colors[edges[0]] - colors[edges[1]], axis=1)
    return FrameDescription(
        image=image,
        grid=features.grid,
        whitened=np.asarray(whitened, np.float32),
        directions=normalize_rows(whitened),
        raw_directions=unit,
        strengths=np.asarray(norms / max(float(norms.mean()), 1e-12), np.float32),
        colors=colors,
        edges=edges,
        lengths=lengths,
        steps=np.asarray(steps / (np.median(steps) + 1e-6), np.float32),
        color_steps=np.asarray(color_steps / max(float(np.median(color_steps)), _COLOR_FLOOR), np.float32),
        walker=RandomWalker(unit.reshape(*features.grid.grid_hw, -1)),
    )


def _principal_components(rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Coordinates ``(N, d)`` of the rows on their leading principal components, and the variances ``(d,)``."""
    centered = rows - rows.mean(axis=0)
    # Cells at LiFT's resolution repeat each other: the covariance of every few of them is as good.
    sample = centered[:: max(1, len(rows) // NUM_SAMPLED_CELLS)]
    size = rows.shape[1]
    leading = (size - min(NUM_COMPONENTS, size), size - 1)
    variances, axes = eigh(sample.T @ sample / len(sample), subset_by_index=leading)
    variances, axes = variances[::-1].clip(min=0), axes[:, ::-1]
    # The signs of eigenvectors are arbitrary; nothing below depends on them.
    return np.asarray(centered @ axes, np.float32), np.asarray(variances, np.float32)


def _cell_colors(image: npt.NDArray[np.uint8], grid_hw: tuple[int, int]) -> FloatArray:
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return np.asarray(cv2.resize(lab, grid_hw[::-1], interpolation=cv2.INTER_AREA).reshape(-1, 3), np.float32)
