"""The number of parts that frames agree on."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.core.arrays import FloatArray, normalize_rows
from pipeline.core.kmeans import assign
from stages.cosegment.part_count import fit_stable_parts, stability


def frames(kinds: int, *, seed: int = 0, noise: float = 0.05, count: int = 8) -> list[FloatArray]:
    """Frames of 60 cells each of some kinds of unit descriptors."""
    random = np.random.default_rng(seed)
    axes = np.linalg.qr(np.random.default_rng(1).standard_normal((16, 16)))[0]
    return [
        normalize_rows(
            (axes[random.integers(0, kinds, 60)] + noise * random.standard_normal((60, 16))).astype(np.float32)
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("kinds", [2, 4, 6])
def test_there_are_as_many_parts_as_kinds_of_cells(kinds: int) -> None:
    seen = frames(kinds)
    parts = fit_stable_parts(seen, iterations=20, redo=3)
    assert len(parts) == kinds
    assert float(assign(np.concatenate(seen), parts)[1].max()) < 0.5
    assert stability(seen, kinds) > 0.5 > stability(seen, kinds + 1)


def test_cells_of_one_kind_are_one_part() -> None:
    """Divided at random, so that the halves of the frames divide them differently."""
    assert len(fit_stable_parts(frames(1, noise=0.2), iterations=20, redo=3)) == 1


def test_too_few_frames_or_cells_to_tell_are_one_part() -> None:
    assert len(fit_stable_parts(frames(4)[:1], iterations=20, redo=1)) == 1
    assert len(fit_stable_parts([rows[:1] for rows in frames(4)[:2]], iterations=20, redo=1)) == 1
    assert fit_stable_parts([np.zeros((0, 16), np.float32)], iterations=20, redo=1).shape == (0, 16)


def test_the_same_frames_give_the_same_parts() -> None:
    seen = frames(3)
    first, second = (fit_stable_parts(seen, iterations=20, redo=2) for _ in range(2))
    np.testing.assert_array_equal(first, second)
