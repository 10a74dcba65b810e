"""One object in an image by a normalized cut on the affinity of its cells.

Source: Wang et al. 2022, "TokenCut" (https://arxiv.org/abs/2209.00383), section 3; Shi and Malik 2000 for the cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from pipeline.core.arrays import FloatArray, normalize_rows
from pipeline.core.normalized_cut import cut_eigenvectors

_WEAK = 1e-5
_NUM_VECTORS = 8
_NUM_STEPS = 200


@dataclass(frozen=True, slots=True)
class Cut:
    """A bipartition.

    Attributes:
        eigenvector: float32 ``(h, w)``, positive at the seed.
        foreground: bool ``(h, w)``, the side of the seed.
        object_mask: bool ``(h, w)``, the connected component of the foreground that holds the seed.
        seed: Row and column of the seed.
    """

    eigenvector: FloatArray
    foreground: npt.NDArray[np.bool_]
    object_mask: npt.NDArray[np.bool_]
    seed: tuple[int, int]

    @property
    def box_cells(self) -> tuple[int, int, int, int]:
        """The component's box in whole cells: left, top, right, bottom; the last two exclusive."""
        rows = np.flatnonzero(self.object_mask.any(axis=1))
        columns = np.flatnonzero(self.object_mask.any(axis=0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def normalized_cut(descriptors: npt.NDArray[np.floating], *, threshold: float = 0.2) -> Cut:
    """The second smallest solution of ``(D - A) v = lambda D v`` and what it cuts out.

    ``A`` is 1 where the cosine of two cells exceeds ``threshold`` and 1e-5 elsewhere. The vector is cut at its
    mean; the cell of largest magnitude is the seed, and its side the foreground.

    Args:
        descriptors: ``(C, h, w)``, any scale.
        threshold: Of the cosine; 0.2 for VOC, 0.3 for COCO in the paper.

    Returns:
        The cut; for a constant map everything is foreground.
    """
    channels, height, width = descriptors.shape
    unit = normalize_rows(descriptors.reshape(channels, -1).T)
    affinity = np.where(unit @ unit.T > threshold, 1.0, _WEAK)
    vector = _second_eigenvector(affinity)
    if float(np.ptp(vector)) < 1e-7:
        everything = np.ones((height, width), bool)
        return Cut(np.ones((height, width), np.float32), everything, everything, (height // 2, width // 2))
    foreground = vector > vector.mean()
    seed = int(np.abs(vector).argmax())
    if not foreground[seed]:
        vector, foreground = -vector, ~foreground
    pieces, _ = ndimage.label(foreground.reshape(height, width))
    row, column = divmod(seed, width)
    return Cut(
        vector.reshape(height, width).astype(np.float32),
        foreground.reshape(height, width),
        pieces == pieces[row, column],
        (row, column),
    )


def _second_eigenvector(affinity: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Second generalized eigenvector; zeros where there is nothing to cut."""
    if len(affinity) < 3 or float(np.ptp(affinity)) == 0.0:
        return np.zeros(len(affinity))
    count = min(_NUM_VECTORS, len(affinity) - 1)
    vectors = cut_eigenvectors(torch.from_numpy(affinity)[None], count, _NUM_STEPS)
    return np.asarray(vectors[0, :, 0].numpy(), np.float64)
