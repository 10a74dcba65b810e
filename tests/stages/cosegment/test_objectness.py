from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.core.arrays import FloatArray, normalize_rows
from stages.cosegment.objectness import (
    border_evidence,
    find_objectness,
    fit_objectness,
    load_objectness,
)

KIND, NOISE = 6, 0.15


def photograph(seed: int) -> tuple[FloatArray, np.ndarray]:
    """A map ``(C, h, w)`` with a patch in the middle that shares one channel with the patches of all others."""
    rng = np.random.default_rng(seed)
    maps = NOISE * rng.standard_normal((16, 12, 16))
    inside = np.zeros((12, 16), bool)
    top, left = rng.integers(2, 5, 2)
    inside[top : top + 5, left : left + 7] = True
    maps[rng.integers(8, 12), ~inside] += 1.0
    maps[rng.integers(12, 16), inside] += 1.0
    maps[KIND, inside] += 0.7
    return maps.astype(np.float32), inside


def rows_of(maps: FloatArray) -> FloatArray:
    return normalize_rows(maps.reshape(len(maps), -1).T)


def test_what_objects_of_many_photographs_share_is_found_in_another(tmp_path: Path) -> None:
    pictures = [photograph(seed)[0] for seed in range(20)]
    evidence = [found for maps in pictures if (found := border_evidence(maps)) is not None]
    assert len(evidence) == 20
    learned = fit_objectness([rows_of(maps) for maps in pictures], evidence)
    maps, inside = photograph(99)
    patch = learned(rows_of(maps)).reshape(inside.shape) > 0
    assert (patch & inside).sum() / (patch | inside).sum() > 0.85
    learned.save(tmp_path / "objectness.safetensors")
    np.testing.assert_array_equal(load_objectness(tmp_path / "objectness.safetensors").weights, learned.weights)


def test_nothing_is_learned_from_nothing() -> None:
    assert border_evidence(np.ones((16, 6, 6), np.float32)) is None
    with pytest.raises(ValueError, match="none were given"):
        fit_objectness([], [])
    with pytest.raises(ValueError, match="stands out"):
        fit_objectness([np.ones((9, 4), np.float32)], [np.zeros(9, np.float32)])


def test_it_is_bundled_for_the_default_descriptors_only() -> None:
    bundled = find_objectness("dinov2_vits14 key@11")
    assert bundled is not None
    assert bundled.weights.shape == (384,)
    assert find_objectness("dino_vits8 key@11") is None
