from __future__ import annotations

import numpy as np
import pytest

from pipeline.core import kmeans
from pipeline.core.arrays import normalize_rows


def blobs(count: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centers = normalize_rows(np.eye(3, 8))
    labels = np.repeat(np.arange(3), count)
    return normalize_rows(centers[labels] + 0.05 * rng.standard_normal((3 * count, 8))), labels


def test_distances_and_assignment_match_a_loop() -> None:
    rng = np.random.default_rng(1)
    rows, centers = rng.standard_normal((20, 5)).astype(np.float32), rng.standard_normal((4, 5)).astype(np.float32)
    naive = np.array([[((r - c) ** 2).sum() for c in centers] for r in rows])
    assert np.allclose(kmeans.squared_distances(rows, centers), naive, atol=1e-4)
    labels, nearest = kmeans.assign(rows, centers)
    assert (labels == naive.argmin(axis=1)).all()
    assert np.allclose(nearest, naive.min(axis=1), atol=1e-4)


def test_kmeans_finds_separate_blobs() -> None:
    rows, labels = blobs()
    found, _ = kmeans.assign(rows, kmeans.fit_kmeans(rows, 3, iterations=20, redo=3))
    assert all(len(np.unique(found[labels == k])) == 1 for k in range(3))
    assert len(np.unique(found)) == 3


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_rows_than_clusters_give_fewer_clusters(count: int) -> None:
    rows = np.eye(count, 8, dtype=np.float32)
    assert kmeans.fit_kmeans(rows, 5).shape == (count, 8)
    assert len(kmeans.elbow_kmeans(rows, rows, iterations=5, redo=1)) <= count


def test_constant_rows_end_the_growth_at_one_cluster() -> None:
    rows = np.tile(np.eye(1, 8, dtype=np.float32), (50, 1))
    found = kmeans.elbow_kmeans(rows, rows, iterations=5, redo=1)
    assert len(found) == 1
    assert np.isfinite(found.centroids).all()


def test_elbow_uses_the_k_that_fails_the_test() -> None:
    rows, _ = blobs()
    found = kmeans.elbow_kmeans(rows, rows, elbow=0.9, iterations=20, redo=3)
    objectives = [
        float(kmeans.assign(rows, kmeans.fit_kmeans(rows, k, iterations=20, redo=3))[1].mean())
        for k in range(1, 15)
    ]
    expected = next(k for k in range(2, 15) if objectives[k - 1] > 0.9 * objectives[k - 2])
    assert len(found) == expected


def test_vote_needs_enough_images_and_ignores_empty_clusters() -> None:
    labels = [np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([0, 0, 0])]
    saliency = [np.array([0.5, 0.5, 0.0], np.float32)] * 2 + [np.array([0.0, 0.0, 0.0], np.float32)]
    votes = kmeans.vote_salient(labels, saliency, 3, threshold=0.1, votes_percent=60)
    assert votes.tolist() == [True, False, False]
    assert not kmeans.vote_salient(labels, saliency, 3, threshold=0.1, votes_percent=100).any()


def test_minibatch_update_without_forgetting_is_the_running_mean() -> None:
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((30, 4)).astype(np.float32)
    centroids, counts = rows[:1].copy(), np.ones(1)
    for start in range(1, 30, 7):
        batch = rows[start : start + 7]
        centroids, counts = kmeans.minibatch_update(
            centroids, counts, batch, np.zeros(len(batch), np.int64), forgetting=1.0
        )
    assert np.allclose(centroids[0], rows.mean(axis=0), atol=1e-5)


def test_forgetting_follows_change_and_leaves_empty_clusters_alone() -> None:
    centroids, counts = np.zeros((2, 1), np.float32), np.array([100.0, 100.0])
    for _ in range(60):
        centroids, counts = kmeans.minibatch_update(
            centroids, counts, np.ones((10, 1), np.float32), np.zeros(10, np.int64), forgetting=0.9
        )
    assert centroids[0, 0] > 0.95
    assert centroids[1, 0] == 0
    assert counts[1] == 100


def test_centroids_in_another_order_keep_their_numbers() -> None:
    old = np.eye(5, 8, dtype=np.float32)
    order = [3, 0, 4, 1]
    assert kmeans.match_centroids(old, old[order] + 0.01, max_distance=0.5).tolist() == order


def test_a_far_centroid_is_new_and_does_not_take_a_near_ones_place() -> None:
    old = np.array([[0.0, 0.0], [1.0, 0.0]], np.float32)
    new = np.array([[0.05, 0.0], [9.0, 9.0]], np.float32)
    assert kmeans.match_centroids(old, new, max_distance=0.5).tolist() == [0, -1]
    assert kmeans.match_centroids(old[:0], new, max_distance=0.5).tolist() == [-1, -1]
