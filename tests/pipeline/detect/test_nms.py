from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.core.arrays import box_iou
from pipeline.detect.nms import batched_nms


def naive(boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, threshold: float) -> list[int]:
    kept: list[int] = []
    for place in sorted(range(len(scores)), key=lambda n: (-scores[n], n)):
        rivals = [k for k in kept if groups[k] == groups[place]]
        if not rivals or box_iou(boxes[[place]], boxes[rivals]).max() <= threshold:
            kept.append(place)
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
def test_suppression_is_that_of_a_plain_loop(threshold: float) -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (200, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(2, 30, (200, 2))], axis=1).astype(np.float32)
    scores = rng.permutation(200).astype(np.float32) / 200
    scores[20:40] = scores[20]
    groups = rng.integers(0, 3, 200)
    found = batched_nms(torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(groups), threshold)
    assert found.tolist() == naive(boxes, scores, groups, threshold)


def test_nothing_gives_nothing() -> None:
    empty = torch.zeros(0)
    assert batched_nms(torch.zeros(0, 4), empty, empty.long(), 0.5).tolist() == []
