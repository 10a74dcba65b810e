from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.bench.prompts_fit import Sample, related, ridge
from pipeline.prompts.ranking import (
    COLUMNS,
    WEIGHTS_FILE,
    Weights,
    chosen,
    left_out_weights,
    pairwise_iou,
    shipped_weights,
)


def test_overlaps_match_sets_of_pixels() -> None:
    masks = np.random.default_rng(0).random((5, 40)) < 0.4
    sets = [set(np.flatnonzero(mask)) for mask in masks]
    naive = [[len(a & b) / len(a | b) for b in sets] for a in sets]
    assert pairwise_iou(masks) == pytest.approx(np.array(naive), abs=1e-5)


def test_the_choice_matches_a_naive_expectation() -> None:
    generator = np.random.default_rng(1)
    masks = generator.random((6, 30)) < 0.5
    masks[3:] = masks[0]
    masks[4, 2] ^= True
    estimates = generator.random(6).astype(np.float32)
    weights = np.exp(5 * estimates) / np.exp(5 * estimates).sum()
    overlaps = [[(a & b).sum() / (a | b).sum() for b in masks] for a in masks]
    expected = [sum(w * value for w, value in zip(weights, row, strict=True)) for row in overlaps]
    best = int(np.argmax(expected))
    agreeing = [k for k in range(6) if overlaps[best][k] > 0.7]
    total = sum(weights[k] for k in agreeing)
    average = sum(weights[k] / total * masks[k] for k in agreeing)
    assert chosen(estimates, masks, 5.0) == pytest.approx(average, abs=1e-5)


def test_many_candidates_that_agree_outvote_one_with_a_slightly_higher_estimate() -> None:
    masks = np.zeros((4, 20), np.bool_)
    masks[0, :3] = True
    masks[1:, 10:18] = True
    assert chosen(np.array([0.55, 0.5, 0.5, 0.5], np.float32), masks, 5.0)[10:18].min() == 1


def test_ridge_finds_the_columns_that_decide_and_ignores_what_is_the_same_for_a_whole_prompt() -> None:
    generator = np.random.default_rng(2)
    kind = "box"
    samples = []
    for number in range(40):
        columns = generator.standard_normal((50, len(COLUMNS[kind]))).astype(np.float32)
        columns[:, 1] = number
        ious = (0.5 + 0.1 * columns[:, 0] + 0.01 * number).astype(np.float32)
        samples.append(Sample(f"s{number % 4}", columns, ious))
    weights = ridge(kind, samples)
    # Standardized columns and a ridge of 0.3 shrink the true weight by 1 / 1.3.
    assert weights[COLUMNS[kind][0]] == pytest.approx(0.1 / 1.3, rel=0.05)
    assert max(abs(value) for name, value in weights.items() if name != COLUMNS[kind][0]) < 0.005


def test_sequences_that_share_objects_are_left_out_together() -> None:
    assert related("cows") == {"cows", "river"}
    assert related("park") == {"park", "river", "street", "libby", "dog", "dance-twirl"}


def test_shipped_weights_are_complete_and_say_where_they_are_from() -> None:
    assert set(shipped_weights().by_kind) == set(COLUMNS)
    origin = json.loads(WEIGHTS_FILE.read_text())["origin"]
    assert {"command", "date", "objects", "sequences"} <= set(origin)
    assert set(origin["sequences"]) == set(left_out_weights())


def test_weights_with_other_columns_are_refused() -> None:
    values = {kind: dict.fromkeys(columns, 0.0) for kind, columns in COLUMNS.items()}
    del values["click"]["contrast"]
    with pytest.raises(ValueError, match="weights of click"):
        Weights.of(values)
