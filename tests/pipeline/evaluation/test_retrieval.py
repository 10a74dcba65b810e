from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.evaluation.retrieval import FrameObjects, RetrievalScore, nearest_rows


def frame(
    index: int, objects: dict[int, tuple[float, float]], names: dict[int, str] | None = None
) -> FrameObjects:
    ids = list(objects)
    return FrameObjects(
        index,
        np.array(list(objects.values()), np.float32).reshape(len(ids), 2),
        np.array(ids, np.int64),
        tuple((names or {}).get(n, "thing") for n in ids),
    )


def naive(frames: list[FrameObjects], gap: int) -> tuple[int, int, int]:
    """Queries, answerable, right: by trying every pair."""
    queries = answerable = right = 0
    for now, later in zip(frames, frames[gap:], strict=False):
        if not len(later.ids):
            continue
        for n, identity in enumerate(now.ids):
            distances = [float(np.linalg.norm(now.descriptors[n] - other)) for other in later.descriptors]
            queries += 1
            answerable += identity in later.ids
            right += later.ids[int(np.argmin(distances))] == identity
    return queries, answerable, right


def test_counts_equal_trying_every_pair() -> None:
    random = np.random.default_rng(0)
    frames = []
    for index in range(25):
        there = [n for n in range(5) if random.random() < 0.7]
        places = {n: (n + float(random.normal(0, 0.6)), float(random.normal(0, 0.6))) for n in there}
        frames.append(frame(index, places))
    score = RetrievalScore([1, 4, 30])
    score.add_video(frames)
    for gap in (1, 4, 30):
        counts = score.counts[gap]
        assert (counts.queries, counts.answerable, counts.same_instance) == naive(frames, gap)
    assert math.isnan(score.counts[30].instance)


def test_an_object_that_left_is_out_of_the_instance_accuracy_and_in_the_category_accuracy() -> None:
    names = {1: "car", 2: "person", 3: "car"}
    score = RetrievalScore([1])
    score.add_video([frame(0, {1: (0, 0), 2: (5, 5)}, names), frame(1, {3: (0, 1), 2: (5, 5)}, names)])
    counts = score.counts[1]
    assert counts.instance == 1.0
    assert counts.instance_all == 0.5
    assert counts.category == 1.0


def test_gaps_do_not_reach_across_videos() -> None:
    score = RetrievalScore([1])
    score.add_video([frame(0, {1: (0, 0)})])
    score.add_video([frame(0, {1: (0, 0)})])
    assert score.counts[1].queries == 0


def test_distances_differ() -> None:
    query = np.array([[2.0, 0.0]], np.float32)
    candidates = np.array([[9.0, 0.0], [2.0, 1.0]], np.float32)
    assert nearest_rows(query, candidates, "euclidean").tolist() == [1]
    assert nearest_rows(query, candidates, "cosine").tolist() == [0]


def test_gaps_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        RetrievalScore([0, 1])
