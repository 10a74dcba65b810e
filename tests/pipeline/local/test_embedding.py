from __future__ import annotations

import builtins
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from pipeline.core.errors import ConfigError
from pipeline.core.grid import PatchGrid
from pipeline.local.embedding import EARLY_STEPS, EmbeddingSettings, embed, sample_cells


def test_directions_that_differ_are_apart_whatever_their_length() -> None:
    pytest.importorskip("openTSNE", reason="needs openTSNE (extra tsne)")
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(3, 32)) * 4
    rows = directions[np.repeat(np.arange(3), 30)] + rng.normal(size=(90, 32))
    rows32 = np.asarray(rows * rng.uniform(0.1, 10, (90, 1)), np.float32)
    steps: list[int] = []
    settings = EmbeddingSettings(perplexity=10, steps=50)
    places = embed(rows32, settings, steps.append)
    assert sum(steps) == EARLY_STEPS + 50
    groups = places.reshape(3, 30, 2)
    centers, spread = groups.mean(axis=1), groups.std(axis=1).max()
    assert min(np.linalg.norm(centers[a] - centers[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > 3 * spread
    np.testing.assert_array_equal(embed(rows32, settings), places)


def test_too_few_descriptors_and_a_missing_library_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openTSNE", reason="needs openTSNE (extra tsne)")
    with pytest.raises(ConfigError, match="at least 10 descriptors"):
        embed(np.ones((4, 3), np.float32), EmbeddingSettings())
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "openTSNE":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"liftstream\[tsne\]"):
        embed(np.ones((40, 3), np.float32), EmbeddingSettings())


@dataclass
class OnlyGrid:
    grid: PatchGrid


def test_every_nth_cell_of_every_image_is_taken_from_its_first_on() -> None:
    images: list[Any] = [OnlyGrid(PatchGrid.covering((28, 42), hw)) for hw in ((2, 3), (3, 3))]
    cells = sample_cells(images, 4)
    assert cells.images.tolist() == [0, 0, 1, 1, 1]
    assert cells.cells.tolist() == [0, 4, 0, 4, 8]
    assert cells.of([np.arange(6) * 10, np.arange(9)]).tolist() == [0, 40, 0, 4, 8]
