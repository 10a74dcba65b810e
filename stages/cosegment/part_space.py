"""Descriptors for parts that change little when the picture is mirrored or enlarged.

The descriptors of a ViT say where a cell lies and which way the object faces, besides what the cell shows, and
k-means splits objects by that too. From pairs of views of the same pictures, the directions are found along which
the descriptors vary much between cells and little between views (Fisher's criterion with the views as classes);
parts are clustered in these alone.

Differs from INSID3 (CVPR 2026), which projects out the leading directions of the features of an empty picture:
``docs/parts.md`` compares both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import scipy.linalg
from safetensors.numpy import load_file, save_file

from pipeline.core.arrays import FloatArray, normalize_rows

_ASSETS: Final = Path(__file__).parent / "assets"
_BUNDLED: Final = {"dinov2_vits14 key@11": "parts_dinov2_vits14_key11.safetensors"}
_RIDGE: Final = 0.1


@dataclass(frozen=True, slots=True)
class PartSpace:
    """A linear map of descriptors.

    Attributes:
        mean: float32 ``(C,)``.
        axes: float32 ``(C, d)``.
    """

    mean: FloatArray
    axes: FloatArray

    def __call__(self, rows: FloatArray) -> FloatArray:
        """Unit rows ``(N, d)`` of unit descriptors ``(N, C)``."""
        return normalize_rows((rows - self.mean) @ self.axes)

    def save(self, path: Path) -> None:
        """Write as safetensors, float16."""
        save_file({"mean": self.mean.astype(np.float16), "axes": self.axes.astype(np.float16)}, path)


def load_part_space(path: Path) -> PartSpace:
    """Read what :meth:`PartSpace.save` wrote."""
    values = load_file(path)
    return PartSpace(values["mean"].astype(np.float32), values["axes"].astype(np.float32))


def find_part_space(descriptors: str) -> PartSpace | None:
    """The bundled space for descriptors named as backbone and facet, such as ``dinov2_vits14 key@11``, or None."""
    name = _BUNDLED.get(descriptors)
    return None if name is None else load_part_space(_ASSETS / name)


def fit_part_space(pairs: Sequence[tuple[FloatArray, FloatArray]], num_axes: int) -> PartSpace:
    """Find the directions that vary between cells and agree between views.

    Args:
        pairs: For each pair of views, unit descriptors ``(N, C)`` of the same N places in both.
        num_axes: d, at most C.
    """
    count = sum(len(first) for first, _ in pairs)
    mean = np.sum([first.sum(axis=0) + second.sum(axis=0) for first, second in pairs], axis=0) / (2 * count)
    total, within = (np.zeros((len(mean), len(mean))) for _ in range(2))
    for first, second in pairs:
        total += (first - mean).T @ (first - mean) + (second - mean).T @ (second - mean)
        within += (first - second).T @ (first - second)
    total, within = total / (2 * count), within / count
    within[np.diag_indices_from(within)] += _RIDGE * np.trace(within) / len(within)
    _, vectors = scipy.linalg.eigh(total, within)
    return PartSpace(mean.astype(np.float32), np.ascontiguousarray(vectors[:, ::-1][:, :num_axes], np.float32))
