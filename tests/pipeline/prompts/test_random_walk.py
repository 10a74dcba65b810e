from __future__ import annotations

import numpy as np
import pytest

from pipeline.core.arrays import normalize_rows
from pipeline.prompts.random_walk import END_PROBABILITY, RandomWalker, walk_graph


def test_visits_match_the_power_series_of_the_walk() -> None:
    directions = normalize_rows(np.random.default_rng(0).standard_normal((24, 5))).reshape(4, 6, 5)
    walker = RandomWalker(directions.repeat(2, axis=0).repeat(2, axis=1))
    graph = walk_graph(directions.reshape(-1, 5), (4, 6)).toarray()
    degrees = graph.sum(axis=1)
    assert np.allclose(graph, graph.T)
    # Each visit goes on with probability 1 / (1 + end); the sum over steps solves the linear system.
    step = graph / degrees[:, None] / (1 + END_PROBABILITY)
    expected = np.linalg.solve(np.eye(24) - step, np.eye(24)[:, 7] / degrees[7] / (1 + END_PROBABILITY))
    series = np.zeros(24)
    term = np.eye(24)[:, 7] / degrees[7] / (1 + END_PROBABILITY)
    for _ in range(20000):
        series += term
        term = step @ term
    assert series == pytest.approx(expected, rel=1e-3)
    cell = 2 * (7 // 6) * 12 + 2 * (7 % 6)
    found = walker.visits([cell]).reshape(8, 12)
    # The middle of two by two equal values, away from the border, is interpolated between neighbors.
    logarithms = np.log(expected).reshape(4, 6)
    assert found[0, 0] == pytest.approx(logarithms[0, 0], abs=1e-4)
    assert found[-1, -1] == pytest.approx(logarithms[-1, -1], abs=1e-4)
