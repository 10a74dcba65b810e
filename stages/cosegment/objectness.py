"""How much a cell looks like an object rather than its surroundings: one linear function of the descriptors.

It is learned from photographs without labels. In each photograph the cells far from the distribution of the cells
along the border are the first evidence of an object; Fisher's discriminant between them and the rest, over the
cells of all photographs, generalizes from that evidence, and its posterior with the evidence as prior gives the
labels of the next round.

Sources: Simeoni et al. 2023, "Unsupervised Object Localization: Observing the Background to Discover Objects"
(FOUND, https://arxiv.org/abs/2212.07834): a linear layer on frozen features that is trained on coarse masks found
without labels. Differs from it: the coarse masks come from the border, not from attention; the layer is fitted in
closed form; nothing is refined with the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from pipeline.core.arrays import FloatArray, normalize_rows

_ASSETS: Final = Path(__file__).parent / "assets"
_BUNDLED: Final = {"dinov2_vits14 key@11": "objectness_dinov2_vits14_key11.safetensors"}
_ROUNDS: Final = 4
_SHRINKAGE: Final = 0.02
_SEED_DEVIATIONS: Final = 1.0
_BORDER_DIMENSIONS: Final = 48
_BORDER_SHRINKAGE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Objectness:
    """A linear function of unit descriptors.

    Attributes:
        weights: float32 ``(C,)``.
        bias: Scalar.
    """

    weights: FloatArray
    bias: float

    def __call__(self, rows: FloatArray) -> FloatArray:
        """Log odds of an object ``(N,)`` of unit descriptors ``(N, C)``."""
        return np.asarray(rows @ self.weights + self.bias, np.float32)

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        save_file({"weights": self.weights, "bias": np.array([self.bias], np.float32)}, path)


def load_objectness(path: Path) -> Objectness:
    """Read what :meth:`Objectness.save` wrote."""
    values = load_file(path)
    return Objectness(values["weights"], float(values["bias"][0]))


def find_objectness(descriptors: str) -> Objectness | None:
    """The bundled function for descriptors named as backbone and facet (``dinov2_vits14 key@11``), or None."""
    name = _BUNDLED.get(descriptors)
    return None if name is None else load_objectness(_ASSETS / name)


def border_distance(tokens: npt.NDArray[np.floating]) -> FloatArray:
    """Squared Mahalanobis distance of every cell to the cells along the image's border.

    Args:
        tokens: ``(C, h, w)``, any scale.

    Returns:
        float32 ``(h, w)``; zeros where all cells are equal.
    """
    channels, height, width = tokens.shape
    rows = normalize_rows(tokens.reshape(channels, -1).T)
    rows = rows - rows.mean(axis=0)
    _, _, directions = np.linalg.svd(rows, full_matrices=False)
    points = np.asarray(rows @ directions[:_BORDER_DIMENSIONS].T, np.float64)
    border = np.ones((height, width), bool)
    border[1:-1, 1:-1] = False
    known = points[border.ravel()]
    variance = float(points.var(axis=0).mean())
    if variance < 1e-12:
        return np.zeros((height, width), np.float32)
    aside = points - known.mean(axis=0)
    covariance = np.cov(known.T) + _BORDER_SHRINKAGE * variance * np.eye(points.shape[1])
    squared = np.einsum("nd,nd->n", aside @ np.linalg.inv(covariance), aside)
    return np.asarray(squared.reshape(height, width), np.float32)


def border_evidence(tokens: npt.NDArray[np.floating]) -> FloatArray | None:
    """The logarithm of :func:`border_distance`, standardized ``(h * w,)``; None where all cells are equal."""
    values = np.log1p(border_distance(tokens)).ravel()
    deviation = float(values.std())
    return None if deviation < 1e-6 else np.asarray((values - values.mean()) / deviation, np.float32)


def fit_objectness(rows: Sequence[FloatArray], evidence: Sequence[FloatArray]) -> Objectness:
    """Learn the function from photographs.

    Args:
        rows: For each photograph unit descriptors ``(N, C)``.
        evidence: For each of them :func:`border_evidence`, ``(N,)``.

    Raises:
        ValueError: There are no photographs, or no cell stands out from the rest.
    """
    if not rows:
        raise ValueError("objectness is learned from photographs, but none were given")
    points, prior = np.concatenate(rows), np.concatenate(evidence)
    mean = points.mean(axis=0)
    points -= mean
    covariance = np.asarray(points.T @ points, np.float64) / len(points)
    ridge = _SHRINKAGE * np.trace(covariance) / len(covariance)
    labels = (prior > _SEED_DEVIATIONS).astype(np.float32)
    weights: npt.NDArray[np.floating] = np.zeros(points.shape[1])
    bias = 0.0
    for _ in range(_ROUNDS):
        share = float(labels.mean())
        if not 0.0 < share < 1.0:
            raise ValueError("no cell of the photographs stands out from their borders")
        inside, outside = labels @ points / labels.sum(), (1 - labels) @ points / (1 - labels).sum()
        between = np.asarray(inside - outside, np.float64)
        within = covariance - share * (1 - share) * np.outer(between, between)
        within[np.diag_indices_from(within)] += ridge
        weights = np.linalg.solve(within, between)
        bias = float(0.5 * np.log(share / (1 - share)) - 0.5 * (inside + outside) @ weights)
        logits = points @ weights.astype(np.float32) + bias + prior
        labels = np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits, -30.0, 30.0))), np.float32)
    return Objectness(weights.astype(np.float32), bias - float(mean @ weights))
