from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.propagate.config import TargetModelConfig
from stages.propagate.label_maps import expected_iou
from stages.propagate.label_memory import Memory
from stages.propagate.target_model import TargetModel, blend_scores, calibrate, correct, correct_labels


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


def test_calibrated_scores_equal_those_of_a_naive_loop() -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(2, 12, 16, generator=generator) * 3 - 1.5
    labels = torch.rand(3, 12, 16, generator=generator) * torch.tensor([1.0, 6.0, 6.0]).view(3, 1, 1)
    labels = labels.softmax(0)
    got, separation = calibrate(scores, labels)
    for k in range(2):
        objects = [(r, c) for r in range(12) for c in range(16) if labels[k + 1, r, c] > 0.5]
        on, around = [1.0] * 5, [-1.0] * 5
        for r in range(12):
            for c in range(16):
                score = min(max(float(scores[k, r, c]), -1), 1)
                if labels[k + 1, r, c] > 0.9:
                    on.append(score)
                close = any(max(abs(r - y), abs(c - x)) <= 4 for y, x in objects)
                if labels[k + 1, r, c] < 0.1 and close:
                    around.append(score)
        assert min(len(on), len(around)) > 5
        middle, half = (np.mean(on) + np.mean(around)) / 2, max(float(np.mean(on) - np.mean(around)) / 2, 0.1)
        assert float(separation[k]) == pytest.approx(half, rel=1e-4)
        want = (scores[k] - float(middle)) / half
        torch.testing.assert_close(got[k], want, rtol=1e-4, atol=1e-5)


def test_an_object_that_changed_keeps_the_cells_of_its_border() -> None:
    """All scores are small and have fallen by 0.4, and the labels miss a column of the object."""
    truth = torch.zeros(24, 32)
    truth[4:20, 8:24] = 1
    scores = (0.6 * (2 * truth - 1) - 0.4)[None]
    propagated = truth.clone()
    propagated[4:20, 23] = 0.4
    labels = torch.stack([1 - propagated, propagated])
    calibrated, separation = calibrate(scores, labels)
    assert float(separation) == pytest.approx(0.6, abs=0.05)
    mask = blend_scores(labels, calibrated, weight=0.3 * separation, certainty=0.0)[1]
    assert float(mask[4:20, 23].min()) > 0.5
    assert float(blend_scores(labels, scores, weight=0.3, certainty=0.0)[1, 4:20, 23].max()) < 0.5
    torch.testing.assert_close((mask > 0.5).float(), truth)


def test_the_classifier_has_a_say_in_the_written_mask_that_is_not_fed_back() -> None:
    model = TargetModel.fit([reference(square())])
    descriptors = reference(square(), seed=1).descriptors
    labels = torch.rand(2, 24, 32, generator=torch.Generator().manual_seed(0)).softmax(0)
    without = correct(model, descriptors, labels, TargetModelConfig(weight=0.5))
    assert torch.equal(without.mask, without.labels)
    corrected = correct(model, descriptors, labels, TargetModelConfig(weight=0.5, mask_weight=0.3))
    assert torch.equal(corrected.labels, without.labels)
    assert torch.equal(corrected.estimate, without.estimate)
    torch.testing.assert_close(corrected.mask.sum(0), torch.ones(24, 32))
    assert not torch.equal(corrected.mask, corrected.labels)


def test_a_classifier_that_does_not_separate_its_object_has_little_say() -> None:
    labels = torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(0)).mul(9).softmax(0)
    scores = torch.stack([labels[1] * 2 - 1, torch.full((24, 32), 0.3)])
    _, separation = calibrate(scores, labels)
    assert float(separation[0]) > 0.7
    assert float(separation[1]) < 0.3


def test_objects_that_exceed_one_together_share_a_cell() -> None:
    labels = torch.tensor([0.1, 0.45, 0.45]).view(3, 1, 1).expand(3, 12, 16)
    memory = reference(torch.cat([square(), square()[1:]]), given=frozenset({1, 2}))
    model = TargetModel.fit([memory])
    mask = correct(model, memory.descriptors, labels, TargetModelConfig(mask_weight=0.9)).mask
    torch.testing.assert_close(mask.sum(0), torch.ones(12, 16))
    assert float(mask.min()) >= 0
