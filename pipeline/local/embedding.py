"""Descriptors of images as points in the plane (t-SNE).

Source: Amir et al. 2021, figure 3 and supplement (https://arxiv.org/abs/2112.05814): t-SNE of the keys of single
layers, with cosine affinities, of every 10th descriptor. The optimization is openTSNE's (Policar et al. 2019,
https://opentsne.readthedocs.io): PCA start, early exaggeration, then ``exaggeration`` to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import FloatArray, IntArray, normalize_rows
from pipeline.core.errors import ConfigError
from pipeline.images.image_sets import DescribedImage

Places = npt.NDArray[np.float32]

EARLY_STEPS: Final = 250
"""Steps with early exaggeration."""
_REPORT_EVERY: Final = 10
# Below this, exact neighbors and Barnes-Hut forces are fast, and the same on every machine.
_MAX_EXACT: Final = 20_000


@dataclass(frozen=True, slots=True)
class EmbeddingSettings:
    """How descriptors are embedded.

    Attributes:
        interval: Every n-th descriptor of an image is taken, row by row from the first.
        perplexity: Effective number of neighbors.
        early_exaggeration: Factor on the attraction during the first 250 steps.
        exaggeration: Factor on the attraction after them; 1 is plain t-SNE.
        steps: Steps after the early exaggeration.
        seed: Of the optimization.
    """

    interval: int = 10
    perplexity: float = 30.0
    early_exaggeration: float = 12.0
    exaggeration: float = 1.0
    steps: int = 500
    seed: int = 0


@dataclass(frozen=True, slots=True)
class SampledCells:
    """The descriptors of a set of images that become points.

    Attributes:
        images: int64 ``(N,)``: which image.
        cells: int64 ``(N,)``: which cell of it, row-major.
    """

    images: IntArray
    cells: IntArray

    def of(self, values: Sequence[npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
        """Values of the cells, from arrays ``(cells, ...)`` per image."""
        return np.concatenate([v[self.cells[self.images == n]] for n, v in enumerate(values)])


def sample_cells(images: Sequence[DescribedImage], interval: int) -> SampledCells:
    """Every ``interval``-th cell of every image, from its first on."""
    cells = [np.arange(0, image.grid.num_cells, interval) for image in images]
    numbers = [np.full(len(c), n) for n, c in enumerate(cells)]
    return SampledCells(np.concatenate(numbers).astype(np.int64), np.concatenate(cells).astype(np.int64))


def embed(
    rows: FloatArray, settings: EmbeddingSettings, on_step: Callable[[int], object] = lambda _: None
) -> Places:
    """Points ``(N, 2)`` of descriptors ``(N, C)``, float32.

    Args:
        rows: At least 10; their scale does not matter.
        settings: How.
        on_step: Called with the number of steps done since its last call.

    Raises:
        ConfigError: openTSNE is not installed, or there are too few descriptors.
    """
    try:
        from openTSNE import TSNE
    except ImportError as error:
        raise ConfigError("t-SNE needs openTSNE: pip install 'liftstream[tsne]'") from error
    if len(rows) < 10:
        raise ConfigError(f"t-SNE needs at least 10 descriptors, got {len(rows)}; use a smaller --interval")
    # openTSNE takes three neighbors per unit of perplexity.
    perplexity = min(settings.perplexity, (len(rows) - 1) / 3)

    def tell(iteration: int, error: float, embedding: object) -> bool:
        on_step(_REPORT_EVERY)
        return False

    tsne = TSNE(
        perplexity=perplexity,
        metric="cosine",
        initialization="pca",
        early_exaggeration_iter=EARLY_STEPS,
        early_exaggeration=settings.early_exaggeration,
        n_iter=settings.steps,
        exaggeration=settings.exaggeration,
        neighbors="exact" if len(rows) <= _MAX_EXACT else "auto",
        negative_gradient_method="bh" if len(rows) <= _MAX_EXACT else "auto",
        random_state=settings.seed,
        callbacks=[tell],
        callbacks_every_iters=_REPORT_EVERY,
    )
    return np.asarray(tsne.fit(normalize_rows(rows)), np.float32)
