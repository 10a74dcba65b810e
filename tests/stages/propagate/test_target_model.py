from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.propagate.label_maps import expected_iou
from stages.propagate.label_memory import Memory
from stages.propagate.target_model import TargetModel, blend_scores, correct_labels


def reference(labels: Tensor, seed: int = 0, given: frozenset[int] = frozenset({1})) -> Memory:
    """Random descriptors whose first channel says which of them are inside the first object."""
    generator = torch.Generator().manual_seed(seed)
    descriptors = torch.randn(8, *labels.shape[1:], generator=generator)
    descriptors[0] += 6 * labels[1]
    return Memory(0, F.normalize(descriptors, dim=0), labels, given)


def square() -> Tensor:
    inside = torch.zeros(12, 16)
    inside[3:7, 4:9] = 1
    return torch.stack([1 - inside, inside])


def test_the_weights_equal_a_balanced_ridge_regression() -> None:
    memory = reference(square())
    rows = memory.descriptors.permute(1, 2, 0).reshape(-1, 8).double().numpy()
    rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    inside = memory.labels[1].flatten().numpy() > 0.5
    weights = np.where(inside, 1 / inside.sum(), 1 / (~inside).sum())
    moments = (rows * weights[:, None]).T @ rows
    ridge = 0.01 * np.diag(moments)[:-1].mean() * np.diag([1.0] * 8 + [0.0])
    want = np.linalg.solve(moments + ridge, (rows * weights[:, None]).T @ np.where(inside, 1.0, -1.0))
    got = TargetModel.fit([memory]).weights[:, 0]
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-3, atol=1e-4)


def test_scores_tell_the_object_in_another_frame() -> None:
    model = TargetModel.fit([reference(square())])
    moved = torch.roll(square(), (3, 4), dims=(1, 2))
    scores = model.scores(reference(moved, seed=1).descriptors)[0]
    assert float(scores[moved[1] > 0].mean()) > 0.5
    assert float(scores[moved[1] == 0].mean()) < -0.5


def test_an_object_that_was_never_given_is_left_alone() -> None:
    labels = torch.cat([square(), torch.zeros(1, 12, 16)])
    memory = reference(labels)
    scores = TargetModel.fit([memory]).scores(memory.descriptors)
    soft = torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(0)).softmax(0)
    corrected = correct_labels(soft, scores, weight=1.0, certainty=0.0, band_cells=0.0)
    torch.testing.assert_close(corrected.sum(0), torch.ones(12, 16))
    ratio = corrected[2] / soft[2]
    assert float(ratio.max()) <= 1 + 1e-6


def test_a_leak_far_from_the_border_is_removed_and_the_border_is_kept() -> None:
    labels = square()
    leaked = labels.clone()
    leaked[1, 9:, 12:], leaked[0, 9:, 12:] = 0.4, 0.6
    scores = torch.full((1, 12, 16), -1.0)
    corrected = correct_labels(leaked, scores, weight=0.5, certainty=0.5, band_cells=1)
    torch.testing.assert_close(corrected[1, 10:, 13:], torch.full((2, 3), 0.2))
    torch.testing.assert_close(corrected[1, 3, 4:9], leaked[1, 3, 4:9])
    torch.testing.assert_close(corrected.sum(0), torch.ones(12, 16))


@pytest.mark.parametrize("score", [-0.4, 0.0, 0.4])
def test_uncertain_scores_change_nothing(score: float) -> None:
    soft = torch.rand(2, 24, 32, generator=torch.Generator().manual_seed(0)).softmax(0)
    scores = torch.full((1, 12, 16), score)
    torch.testing.assert_close(correct_labels(soft, scores, weight=1.0, certainty=0.5, band_cells=0), soft)


def test_the_model_alone_finds_nothing() -> None:
    background = torch.stack([torch.ones(12, 16), torch.zeros(12, 16)])
    scores = torch.ones(1, 12, 16)
    assert torch.equal(correct_labels(background, scores, weight=1.0, certainty=0.0, band_cells=1), background)


def test_a_confident_mask_on_what_the_classifier_rejects_loses_confidence() -> None:
    model = TargetModel.fit([reference(square())])
    moved = torch.roll(square(), (3, 4), dims=(1, 2))
    scores = model.scores(reference(moved, seed=1).descriptors)

    def confidence(labels: Tensor) -> float:
        estimate = blend_scores(labels, scores, weight=0.5, certainty=0.3)
        assert 0 <= float(estimate.min()) <= float(estimate.max()) <= 1
        return expected_iou(labels, estimate)[0]

    lost = torch.roll(square(), (5, -4), dims=(1, 2))
    assert expected_iou(moved) == expected_iou(lost) == (1.0,)
    assert confidence(moved) > 0.85
    assert confidence(lost) < confidence(moved) - 0.15


def test_an_object_without_classifier_keeps_its_labels_as_estimate() -> None:
    labels = torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(0)).softmax(0)
    scores = torch.stack([torch.full((6, 8), 0.9), torch.full((6, 8), torch.nan)])
    blended = blend_scores(labels, scores, weight=0.5, certainty=0.3)
    torch.testing.assert_close(blended[1], (labels[1] + 0.95) / 2)
    torch.testing.assert_close(blended[2], labels[2])
