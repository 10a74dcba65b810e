"""The box of an image's main object, by whatever method suits the backbone."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from pipeline.core.arrays import normalize_rows
from pipeline.core.errors import ConfigError
from pipeline.core.grid import PatchGrid
from pipeline.images.image_sets import DescribedImage
from pipeline.images.object_discovery import find_object, find_salient_piece
from pipeline.images.tokencut import normalized_cut
from stages.cosegment.objectness import find_objectness

Box = tuple[float, float, float, float]
Method = Literal["tokencut", "objectness", "discriminant"]

_BORDER_FACET = "token@-1"


def choose_method(backbone: str, facet: str) -> Method:
    """TokenCut for DINO, the objectness where one is bundled for the descriptors, else a discriminant."""
    if backbone.startswith("dino_"):
        return "tokencut"
    return "discriminant" if find_objectness(f"{backbone} {facet}") is None else "objectness"


def find_facets(method: Method, facet: str) -> tuple[str, ...]:
    """The facets a method reads, the descriptors first."""
    return tuple(dict.fromkeys((facet, _BORDER_FACET))) if method == "discriminant" else (facet,)


def object_cells(
    described: DescribedImage, method: Method, *, facet: str, threshold: float, backbone: str
) -> npt.NDArray[np.bool_]:
    """The cells of the main object, bool ``(h, w)``.

    Raises:
        ConfigError: No objectness is bundled for the descriptors.
    """
    if method == "tokencut":
        return normalized_cut(described.descriptors, threshold=threshold).object_mask
    if method == "discriminant":
        tokens = described.descriptors if facet == _BORDER_FACET else described.extra(_BORDER_FACET)
        return find_object(described.descriptors, tokens)
    objectness = find_objectness(f"{backbone} {facet}")
    if objectness is None:
        raise ConfigError(
            f"--method objectness: none is bundled for {facet} of {backbone}; use --method discriminant"
        )
    return find_salient_piece(objectness(normalize_rows(described.rows)).reshape(described.grid.grid_hw))


def cells_box(mask: npt.NDArray[np.bool_], grid: PatchGrid) -> Box:
    """The box of the cells of a mask ``(h, w)`` in pixels, cut at the image: left, top, right, bottom."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    corners = torch.tensor([[columns[0], rows[0]], [columns[-1] + 1, rows[-1] + 1]], dtype=torch.float32)
    left, top, right, bottom = grid.cells_to_pixels(corners).flatten().tolist()
    height, width = grid.image_hw
    return max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)
