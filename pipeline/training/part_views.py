"""Pairs of views of photographs, mirrored and enlarged, that a part space is fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import FloatArray, normalize_rows
from pipeline.core.image_views import enlarged, mirrored
from pipeline.core.records import Frame
from pipeline.formats.image_folder import load_image
from stages.extract import Extractor


def describe_views(path: Path, extractor: Extractor) -> list[FloatArray]:
    """Descriptors ``(h, w, C)``, unit, of a photograph, of its mirror image and of its enlarged middle."""
    image = load_image(path)
    views = (image, mirrored(image), enlarged(image))
    packets = extractor(Frame(view, index, 0.0) for index, view in enumerate(views))
    return [_unit_cells(packet.features.data.float().cpu().numpy()) for packet in packets if packet.features]


def view_pairs(views: Sequence[FloatArray]) -> list[tuple[FloatArray, FloatArray]]:
    """The two pairs of rows ``(N, C)`` of the same places that three views ``(h, w, C)`` give."""
    plain, mirror, large = views
    height, width, channels = plain.shape
    rows = ((np.arange(height) + 0.5) * 2 / 3 + height / 6).astype(int)
    columns = ((np.arange(width) + 0.5) * 2 / 3 + width / 6).astype(int)
    flat = [
        np.ascontiguousarray(cells).reshape(-1, channels)
        for cells in (plain, mirror[:, ::-1], plain[rows][:, columns], large)
    ]
    return [(flat[0], flat[1]), (flat[2], flat[3])]


def _unit_cells(maps: npt.NDArray[np.floating]) -> FloatArray:
    channels, height, width = maps.shape
    return normalize_rows(maps.reshape(channels, -1).T).reshape(height, width, channels)
