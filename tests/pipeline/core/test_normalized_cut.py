from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import eigh

from pipeline.core.normalized_cut import cut_eigenvectors


def test_eigenvectors_solve_the_generalized_problem() -> None:
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(4), (10, 14, 8, 9))
    weights = np.where(kinds[:, None] == kinds, 1.0, 0.05) + 0.05 * rng.random((41, 41))
    weights = (weights + weights.T) / 2
    degree = np.diag(weights.sum(axis=1))
    _, expected = eigh(degree - weights, degree)
    found = cut_eigenvectors(torch.from_numpy(weights)[None], 5, 200)[0].numpy()
    for number in range(3):
        cosine = found[:, number] @ degree @ expected[:, number + 1]
        assert abs(cosine) / np.sqrt(found[:, number] @ degree @ found[:, number]) > 0.999
