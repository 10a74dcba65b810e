from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.core.arrays import FloatArray, IntArray
from pipeline.core.errors import ConfigError
from pipeline.local.heads import HeadKind, KnnHead, LinearHead, Metric, exact_index, fit_head, search
from pipeline.local.probing import channel_variance, kept_after


def neighbors_by_hand(
    rows: FloatArray, labels: IntArray, queries: FloatArray, k: int, metric: Metric
) -> list[int]:
    found = []
    for query in queries.astype(np.float64):
        if metric == "cosine":
            distances = [
                1 - query @ r / np.linalg.norm(query) / np.linalg.norm(r) for r in rows.astype(np.float64)
            ]
        else:
            distances = [float(np.sum((query - r) ** 2)) for r in rows.astype(np.float64)]
        near = [int(labels[n]) for n in sorted(range(len(rows)), key=lambda n: distances[n])[:k]]
        found.append(max(near, key=lambda label: (near.count(label), -near.index(label))))
    return found


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_neighbors_are_those_found_by_hand(k: int, metric: Metric) -> None:
    rng = np.random.default_rng(k)
    rows, queries = (rng.normal(size=(n, 7)).astype(np.float32) for n in (40, 25))
    labels = rng.integers(0, 3, 40)
    head = KnnHead(rows, labels, k=k, metric=metric)
    assert head.predict(queries).tolist() == neighbors_by_hand(rows, labels, queries, k, metric)


def test_rows_of_an_image_can_be_left_out_of_a_search() -> None:
    rows = np.arange(10, dtype=np.float32)[:, None]
    index = exact_index(rows, "euclidean")
    assert search(index, rows[[4]], 1, "euclidean")[0, 0] == 4
    assert search(index, rows[[4]], 2, "euclidean", without=range(2, 6))[0].tolist() == [6, 1]


@pytest.mark.parametrize(("batch_norm", "scale"), [(False, 100.0), (True, 1.0)])
def test_a_linear_head_learns_what_is_linear_also_for_a_rare_class(batch_norm: bool, scale: float) -> None:
    """With one patch in ten of a class and channels of mean zero, a short fit leaves the bias behind."""
    rng = np.random.default_rng(0)
    labels = (rng.random(1500) < 0.1).astype(np.int64)
    rows = scale * (rng.normal(size=(1500, 16)) + 4 * labels[:, None] * rng.normal(size=16)).astype(np.float32)
    head = LinearHead(rows[:1000], labels[:1000], 2, batch_norm=batch_norm)
    assert (head.predict(rows[1000:]) == labels[1000:]).mean() > 0.98


def mae_like(seed: int, count: int = 900) -> tuple[FloatArray, IntArray]:
    """Three classes on 40 channels, and 8 channels of noise with a hundred times their variance."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    centers = np.random.default_rng(99).normal(size=(3, 40)) * 1.5
    content = centers[labels] + rng.normal(size=(count, 40))
    loud = 25 * rng.normal(size=(count, 8))
    rows = np.concatenate([content[:, :11], loud[:, :4], content[:, 11:], loud[:, 4:]], axis=1)
    return rows.astype(np.float32), labels.astype(np.int64)


def accuracy(kind: HeadKind, removed: int) -> float:
    rows, labels = mae_like(0)
    queries, truth = mae_like(1)
    kept = kept_after(channel_variance(rows), removed)
    if kept is not None:
        rows, queries = rows[:, kept], queries[:, kept]
    return float((fit_head(kind, rows, labels, 3).predict(np.ascontiguousarray(queries)) == truth).mean())


def test_removing_high_variance_channels_lifts_neighbors_and_leaves_linear_probes() -> None:
    """The finding of the paper on MAE, planted: the loud channels hide everything from distances alone."""
    assert accuracy("knn", 0) < 0.6
    assert accuracy("knn", 8) > 0.95
    assert accuracy("linear", 0) > 0.95
    assert abs(accuracy("linear", 8) - accuracy("linear", 0)) < 0.03


def test_the_removed_channels_are_the_most_variable_ones() -> None:
    rows, _ = mae_like(0)
    variance = channel_variance(rows)
    torch.testing.assert_close(variance, torch.from_numpy(rows.astype(np.float64).var(axis=0)))
    kept = kept_after(variance, 8)
    assert kept is not None
    assert set(range(48)) - set(kept.tolist()) == {11, 12, 13, 14, 44, 45, 46, 47}
    assert kept_after(variance, 0) is None


def test_patches_without_a_label_do_not_train() -> None:
    rows = np.array([[0.0], [1.0], [5.0]], np.float32)
    head = fit_head("knn", rows, np.array([0, -1, 1]), 2)
    assert head.predict(rows).tolist() == [0, 0, 1]
    with pytest.raises(ConfigError, match="no training patch has a label"):
        fit_head("linear", rows, np.array([-1, -1, -1]), 2)
