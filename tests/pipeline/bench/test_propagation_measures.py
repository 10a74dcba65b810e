from __future__ import annotations

import pytest
import torch

from pipeline.bench.propagation_measures import Setting, compare, dense_labels, make_inputs, stream_memory
from stages.propagate.propagation import Window, propagate_labels


def test_the_dense_opponent_computes_the_same_labels() -> None:
    setting = Setting(height=14, width=17, contexts=3, channels=16, labels=2, radius=4)
    target, contexts, labels = make_inputs(setting)
    cells = torch.arange(14 * 17)
    near = ((cells // 17)[:, None] - cells // 17).abs() <= 4
    mask = (near & (((cells % 17)[:, None] - cells % 17).abs() <= 4)).float()
    dense = dense_labels(
        target.flatten(1), torch.stack(contexts).flatten(2), torch.stack(labels, 1).flatten(1), mask, top_k=5
    )
    windowed = propagate_labels(target, contexts, labels, windows=Window(4))
    torch.testing.assert_close(dense, windowed.flatten(1), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_comparison_runs_and_agrees() -> None:
    report = compare(Setting(height=20, width=24, contexts=2, channels=16, repeats=1), large=False)
    assert [row["version"] for row in report["rows"]] == ["windowed", "dense"]
    assert report["max_difference"] < 1e-5
    assert report["speedup"] > 0


@pytest.mark.slow
def test_memory_stays_flat_over_a_long_video() -> None:
    rows = stream_memory(1_200, checkpoints=3)
    assert [row["frames"] for row in rows] == [200, 400, 800, 1_200]
    assert rows[-1]["resident_bytes"] - rows[0]["resident_bytes"] < 20 * 2**20
