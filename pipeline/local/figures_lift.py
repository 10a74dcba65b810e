"""Figures of LiFT (Suri et al. 2024): lifted features, self-similarity, agreement of scales and layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Final

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.core.arrays import FloatArray
from pipeline.core.grid import PatchGrid
from pipeline.evaluation.lift_properties import LinearCka, as_samples, pairs_of, self_similarity
from pipeline.local.figure_material import Material, doubled
from pipeline.local.figure_plots import DPI, Drawn, Plot, blocks, picture_grid
from pipeline.local.labeled_set import Image
from stages.extract.views import JointPca, paint_heat

_KINDS: Final = ("raw", "bilinear", "LiFT")
_CENTER: Final = (0.5, 0.5)
_SCALES: Final = (0.5, 1.0, 2.0)


def draw_lift(material: Material) -> Drawn:
    """Principal components of raw, bilinear and lifted features, in the basis of the raw ones."""
    maps = _kinds(material)
    pca = JointPca()
    for raw, *_ in maps:
        pca.update(raw)
    pca.fit()
    rows = [
        (name, [image, *(blocks(pca.colors(one)) for one in kinds)])
        for (name, image), kinds in zip(material.named, maps, strict=True)
    ]
    return Drawn([Plot(material.lift_facet, picture_grid(rows, ["image", *_KINDS]))])


def draw_similarity(material: Material) -> Drawn:
    """Cosine similarity of every cell to the one at the image's center."""
    rows = []
    for image, kinds in zip(material.described, _kinds(material), strict=True):
        similarities = [self_similarity(one, _CENTER) for one in kinds]
        low = min(float(one.min()) for one in similarities)  # keys have a common part: cosines begin far above 0
        pictures = [_with_cross(image.image)]
        for one in similarities:
            grid = PatchGrid.covering(image.grid.image_hw, _hw(one))
            pictures.append(paint_heat((one - low) / max(1 - low, 1e-6), grid, image.image, opacity=0.8))
        rows.append((image.name, pictures))
    return Drawn([Plot(material.lift_facet, picture_grid(rows, ["image, point", *_KINDS]))])


def draw_cka(material: Material) -> Drawn:
    """Linear CKA between all layers at all scales and, with a LiFT, between scales of lifted features."""
    scales = _scales(material)
    tokens = material.facets("token")
    facets = list(dict.fromkeys([*tokens, material.lift_facet]))
    found = {scale: material.at_scale(scale, facets) for scale in scales}
    values = cka_matrix([found[scale][name] for scale in scales for name in tokens])
    labels = [f"{layer}" for _ in scales for layer in material.layers]
    numbers = {
        "scales_px": scales,
        "layers": list(material.layers),
        "cka": np.round(values.astype(np.float64), 4).tolist(),
    }
    with_lift = material.has_lift
    figure = Figure(figsize=(11.3 if with_lift else 6.4, 5.6), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 2 if with_lift else 1, squeeze=False)[0]
    _draw_matrix(panels[0], values, labels, scales)
    if with_lift:
        by_kind = _between_scales(material, {scale: found[scale][material.lift_facet] for scale in scales})
        _draw_bars(panels[1], by_kind, material.lift_facet)
        numbers["between_scales"] = by_kind
    return Drawn([Plot("", figure)], numbers)


def cka_matrix(maps: Sequence[Sequence[Tensor]]) -> FloatArray:
    """Linear CKA between representations of the same images, float32 ``(n, n)``.

    Args:
        maps: By representation, a map ``(C, h, w)`` for every image; they are compared on the coarser grid.
    """
    values = np.eye(len(maps), dtype=np.float32)
    for a, b in combinations(range(len(maps)), 2):
        values[a, b] = values[b, a] = cka_between(maps[a], maps[b])
    return values


def cka_between(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Linear CKA of two representations of the same images, on the coarser grid."""
    cka = LinearCka()
    for one, other in zip(first, second, strict=True):
        grid = min(_hw(one), _hw(other))
        cka.add(as_samples(one[None], grid), as_samples(other[None], grid))
    return cka.value()


def _between_scales(material: Material, raw: dict[int, list[Tensor]]) -> dict[str, dict[str, float]]:
    """CKA by kind of features and pair of scales."""
    by_kind = {
        "raw": raw,
        "bilinear": {scale: [doubled(one) for one in maps] for scale, maps in raw.items()},
        "LiFT": {scale: material.lifted_at(scale) for scale in raw},
    }
    return {
        kind: {f"{a}-{b}": round(cka_between(maps[a], maps[b]), 4) for a, b in pairs_of(list(raw))}
        for kind, maps in by_kind.items()
    }


def _draw_matrix(axes: Axes, values: FloatArray, labels: Sequence[str], scales: Sequence[int]) -> None:
    shown = axes.imshow(values, vmin=0, vmax=1, cmap="viridis")
    size = len(labels) // len(scales)
    for row, column in np.ndindex(values.shape):
        color = "white" if values[row, column] < 0.6 else "black"
        axes.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=6, color=color)
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    for border in range(1, len(scales)):
        axes.axhline(border * size - 0.5, color="white", linewidth=2)
        axes.axvline(border * size - 0.5, color="white", linewidth=2)
    around = ", ".join(f"{scale} px" for scale in scales)
    axes.set_xlabel(f"layer, at {around}")
    axes.set_ylabel(f"layer, at {around}")
    axes.set_title("CKA of tokens between scales and layers", fontsize=10)
    axes.figure.colorbar(shown, ax=axes, shrink=0.8)


def _draw_bars(axes: Axes, by_kind: dict[str, dict[str, float]], facet: str) -> None:
    pairs = list(by_kind["raw"])
    for number, (kind, values) in enumerate(by_kind.items()):
        places = [place + (number - 1) * 0.27 for place in range(len(pairs))]
        drawn = axes.bar(places, [values[pair] for pair in pairs], width=0.25, label=kind)
        axes.bar_label(drawn, fmt="%.2f", fontsize=7)
    axes.set_xticks(range(len(pairs)), [f"{pair} px" for pair in pairs])
    axes.set_ylim(0, 1.2)
    axes.set_ylabel("CKA between the two scales")
    axes.set_title(f"CKA of {facet} between scales", fontsize=10)
    axes.legend(fontsize=8, loc="upper right", ncols=3)


def _scales(material: Material) -> list[int]:
    sides = [int(material.settings.short_side * factor) for factor in _SCALES]
    return [side for side in sides if side >= 2 * material.model.patch_px]


def _kinds(material: Material) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Raw, bilinear and lifted maps of every image."""
    raw = material.maps(material.lift_facet)
    return [(one, doubled(one), lifted) for one, lifted in zip(raw, material.lifted, strict=True)]


def _hw(maps: Tensor) -> tuple[int, int]:
    return int(maps.shape[-2]), int(maps.shape[-1])


def _with_cross(image: Image) -> Image:
    marked = image.copy()
    at = (image.shape[1] // 2, image.shape[0] // 2)
    size = max(image.shape[:2]) // 16
    for color, thickness in (((255, 255, 255), 5), ((220, 0, 0), 2)):
        scaled = max(1, thickness * max(image.shape[:2]) // 640)
        cv2.drawMarker(marked, at, color, cv2.MARKER_CROSS, size, scaled)
    return marked
