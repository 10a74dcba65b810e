"""What a frame's cells are described by: centered token and key features at LiFT's resolution, whitened.

Features of one frame share a large common part, so cosine similarity between raw cells hardly tells objects apart.
Each facet is centered and normalized, the facets are put side by side, and the result is projected on its leading
principal components and divided by their standard deviations, shrunk towards their mean: distances between means
are then distances of Fisher's linear discriminant (Fisher 1936) with the scatter of the frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pipeline.core.arrays import FloatArray, IntArray, normalize_rows
from pipeline.core.grid import PatchGrid
from pipeline.core.records import Features, Frame
from stages.extract import ExtractConfig, Extractor
from stages.extract.lift.choice import choose_lift

SHORT_SIDE_PX = 476
NUM_COMPONENTS = 64


@dataclass(frozen=True, slots=True)
class FrameDescription:
    """The cells of one frame.

    Attributes:
        image: uint8 ``(H, W, 3)``, the frame.
        grid: Where the cells lie on it.
        whitened: float32 ``(N, d)``, one row per cell, row by row.
        directions: The rows of ``whitened`` at unit length.
        raw_directions: The same of the features as they are, centered and normalized but not whitened.
        edges: int64 ``(2, E)``: pairs of adjacent cells (8 neighbors).
        steps: float32 ``(E,)``: dissimilarity of each pair times the distance of the cells in cells.
    """

    image: npt.NDArray[np.uint8]
    grid: PatchGrid
    whitened: FloatArray
    directions: FloatArray
    raw_directions: FloatArray
    edges: IntArray
    steps: FloatArray

    def cell(self, x: float, y: float) -> int:
        """Number of the cell nearest to a pixel position."""
        column, row = (int(value) for value in self.grid.nearest_cells(torch.tensor([x, y], dtype=torch.float32)))
        return row * self.grid.grid_hw[1] + column

    def smoothed_direction(self, cell: int) -> FloatArray:
        """Unit mean ``(d,)`` of a cell and its neighbors: one cell alone is noisy."""
        height, width = self.grid.grid_hw
        row, column = divmod(cell, width)
        block = self.directions.reshape(height, width, -1)[
            max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2
        ]
        mean = block.mean(axis=(0, 1))
        return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), np.float32)


def prompt_extractor(extractor: Extractor) -> Extractor:
    """An extractor of the features prompts are answered from, with the backbone of the run's own extractor.

    The resolution and the facets are those the method was chosen for, whatever the run uses: a click needs finer
    cells than propagation, and one frame of them costs little.
    """
    base, backbone = extractor.config, extractor.backbone
    facets = ("token@-1:norm", "key@-1")
    settings = {
        "facets": facets,
        "short_side": SHORT_SIDE_PX,
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


def describe_frame(frame: Frame, extractor: Extractor) -> FrameDescription:
    """The description of one frame; ``extractor`` is from :func:`prompt_extractor`."""
    extractor.reset()
    packet = next(iter(extractor(iter([frame]))))
    assert packet.features is not None
    return describe(frame.image, packet.features)


def describe(image: npt.NDArray[np.uint8], features: Features) -> FrameDescription:
    """The description of a frame from its features: the main facet and all further ones.

    Args:
        image: uint8 ``(H, W, 3)``.
        features: Of that frame.
    """
    maps = [features.data, *features.extra.values()]
    blocks = []
    for values in maps:
        rows = values.flatten(1).T.float().cpu().numpy()
        blocks.append(normalize_rows(rows - rows.mean(axis=0)))
    rows = np.concatenate(blocks, axis=1) / np.sqrt(len(blocks))
    projected, variances = _principal_components(rows.astype(np.float32))
    whitened = projected / np.sqrt(variances + max(float(variances.mean()), 1e-12))
    edges, lengths = _neighbors(features.grid.grid_hw)
    unit = normalize_rows(projected)
    dissimilarity = 1 - np.einsum("ed,ed->e", unit[edges[0]], unit[edges[1]])
    return FrameDescription(
        image=image,
        grid=features.grid,
        whitened=np.asarray(whitened, np.float32),
        directions=normalize_rows(whitened),
        raw_directions=unit,
        edges=edges,
        steps=np.asarray((dissimilarity.clip(min=0) + 1e-6) * lengths, np.float32),
    )


def _principal_components(rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Coordinates ``(N, d)`` of the rows on their leading principal components, and the variances ``(d,)``."""
    centered = rows - rows.mean(axis=0)
    variances, axes = np.linalg.eigh(centered.T @ centered / len(rows))
    kept = slice(None, -min(NUM_COMPONENTS, rows.shape[1]) - 1, -1)
    variances, axes = variances[kept].clip(min=0), axes[:, kept]
    # The signs of eigenvectors are arbitrary; nothing below depends on them.
    return np.asarray(centered @ axes, np.float32), np.asarray(variances, np.float32)


def _neighbors(grid_hw: tuple[int, int]) -> tuple[IntArray, FloatArray]:
    height, width = grid_hw
    cells = np.arange(height * width, dtype=np.int64).reshape(height, width)
    pairs, lengths = [], []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        first = cells[: height - down, max(0, -right) : width - max(0, right)]
        second = cells[down:, max(0, right) : width - max(0, -right)]
        pairs.append(np.stack([first.ravel(), second.ravel()]))
        lengths.append(np.full(first.size, np.hypot(down, right), np.float32))
    return np.concatenate(pairs, axis=1), np.concatenate(lengths)
