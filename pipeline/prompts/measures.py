"""What distinguishes the region of an object from one that stops short of its border or leaks over it.

Each measure is one number per region of cells. A linear combination of them, fitted on objects with known masks
(:mod:`pipeline.prompts.ranking`), estimates how well the region matches the object.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from pipeline.core.arrays import FloatArray, IntArray
from pipeline.prompts.views import BoolArray, View

RING_SHARE = 0.35
"""Width of the ring around a region, in square roots of its area."""

MEASURES = (
    "contrast",
    "ring_apart",
    "far_alike",
    "border_steps",
    "inner_steps",
    "border_color_steps",
    "size",
    "size_squared",
    "outline",
    "cut_by_window",
    "cut_by_frame",
    "roundness",
    "coherence",
    "ring_coherence",
    "strength",
    "in_window",
)
"""The columns of :func:`measure_regions`:

- contrast: logarithm of the distance between the whitened means of the region and of the ring around it.
- ring_apart: share of the ring that lies on its own side of the linear discriminant between the two.
- far_alike: share of all further cells that lie on the region's side.
- border_steps, inner_steps: logarithm of the mean dissimilarity of neighbors across the border, and inside.
- border_color_steps: the same across the border, of colors.
- size, size_squared: logarithm of the region's share of the frame, and its square.
- outline: logarithm of the number of pairs of neighbors that are cut, over the square root of the area.
- cut_by_window, cut_by_frame: cells at sides of the window beyond which the frame goes on, or ends, over the same.
- roundness: logarithm of the largest inscribed disk's radius, over the same.
- coherence, ring_coherence: length of the mean direction of the cells of the region, and of the ring.
- strength: mean length of the features, against the ring's.
- in_window: 1 in a window, 0 in the whole frame.
"""


def measure_regions(view: View, masks: BoolArray) -> FloatArray:
    """The measures of regions.

    Args:
        view: What the regions are in.
        masks: bool ``(K, N)``, none of them empty.

    Returns:
        float32 ``(K, M)``, the columns of ``MEASURES``.
    """
    cells, grid_hw = view.cells, view.cells.grid.grid_hw
    rings = np.stack([ring_around(mask, grid_hw) for mask in masks])
    regions, around = masks.astype(np.float32), rings.astype(np.float32)
    areas, ring_areas = regions.sum(axis=1), around.sum(axis=1).clip(1)
    root = np.sqrt(areas)

    means = regions @ cells.whitened / areas[:, None]
    ring_means = around @ cells.whitened / ring_areas[:, None]
    apart = means - ring_means
    alike = apart @ cells.whitened.T > (((means + ring_means) / 2) * apart).sum(axis=1)[:, None]
    beyond = ~(masks | rings)

    first, second = masks[:, cells.edges[0]], masks[:, cells.edges[1]]
    cut, within = (first != second).astype(np.float32), (first & second).astype(np.float32)
    num_cut = cut.sum(axis=1).clip(1)

    inner, outer = _cells_at_sides(view, masks)
    size = np.log(
        areas * cells.grid.stride_px[0] * cells.grid.stride_px[1] / (view.frame_hw[0] * view.frame_hw[1])
    )
    columns = (
        np.log(np.linalg.norm(apart, axis=1) + 1e-6),
        (rings & ~alike).sum(axis=1) / ring_areas,
        (beyond & alike).sum(axis=1) / beyond.sum(axis=1).clip(1),
        np.log(cut @ cells.steps / num_cut + 0.05),
        np.log(within @ cells.steps / within.sum(axis=1).clip(1) + 0.05),
        np.log(cut @ cells.color_steps / num_cut + 0.05),
        size,
        size**2,
        np.log(num_cut / root),
        inner / root,
        outer / root,
        np.log(np.array([depth_map(mask, grid_hw).max() for mask in masks]) / root),
        _coherence(regions, areas, cells.raw_directions),
        _coherence(around, ring_areas, cells.raw_directions),
        regions @ cells.strengths / areas - around @ cells.strengths / ring_areas,
        np.full(len(masks), float(view.is_window)),
    )
    return np.stack(columns, axis=1).astype(np.float32)


def click_depth(view: View, masks: BoolArray, clicked: Sequence[int]) -> FloatArray:
    """How deep in each region the clicked cells lie, 1 is its deepest place; their mean ``(K,)``."""
    found = []
    if not clicked:
        return np.zeros(len(masks), np.float32)
    for mask in masks:
        depth = depth_map(mask, view.cells.grid.grid_hw).ravel()
        found.append(depth[list(clicked)].mean() / max(float(depth.max()), 1e-6))
    return np.asarray(found, np.float32)


def ring_around(region: BoolArray, grid_hw: tuple[int, int]) -> BoolArray:
    """The cells around a region, in a ring as wide as suits its size."""
    side = 2 * max(2, int(np.sqrt(region.sum()) * RING_SHARE)) + 1
    grown = cv2.dilate(region.reshape(grid_hw).astype(np.uint8), np.ones((side, side), np.uint8))
    return np.asarray((grown > 0).ravel() & ~region, np.bool_)


def depth_map(mask: BoolArray, grid_hw: tuple[int, int]) -> FloatArray:
    """Distance ``(h, w)`` of each cell of a region to the nearest cell outside; the frame's border is outside."""
    padded = np.pad(mask.reshape(grid_hw).astype(np.uint8), 1)
    return np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1], np.float32)


def _coherence(weights: FloatArray, areas: FloatArray, directions: FloatArray) -> FloatArray:
    return np.asarray(np.linalg.norm(weights @ directions / areas[:, None], axis=1), np.float32)


def _cells_at_sides(view: View, masks: BoolArray) -> tuple[IntArray, IntArray]:
    """Cells of each region at sides beyond which the frame goes on, and at sides that are the frame's."""
    shaped = masks.reshape(-1, *view.cells.grid.grid_hw)
    sides = (shaped[:, 0], shaped[:, -1], shaped[:, :, 0], shaped[:, :, -1])
    counts = np.stack([side.sum(axis=1) for side in sides])
    inner = np.array(view.inner_sides())
    return counts[inner].sum(axis=0), counts[~inner].sum(axis=0)
