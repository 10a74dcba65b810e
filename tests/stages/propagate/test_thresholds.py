"""Factors on objects' maps by their confidence, against the best threshold found by trying all."""

import torch

from stages.propagate.thresholds import LARGEST, weights_of_objects


def test_a_number_is_taken_as_it_is() -> None:
    assert weights_of_objects(1.13, torch.tensor([0.5])) == 1.13


def test_the_square_of_the_factor_gives_the_threshold_of_the_largest_expected_overlap() -> None:
    torch.manual_seed(0)
    probs = torch.rand(500, dtype=torch.float64).sort(descending=True).values
    taken = torch.arange(1, 501)
    inside = probs.cumsum(0)
    overlaps = inside / (taken + probs.sum() - inside)
    best = int(overlaps.argmax())
    factor = weights_of_objects("confidence", overlaps[best : best + 1].float())
    assert isinstance(factor, torch.Tensor)
    threshold = 1 / (1 + factor.item() ** 2)
    assert probs[best] > threshold > probs[best + 1]


def test_more_doubt_takes_more_up_to_a_bound() -> None:
    weights = weights_of_objects("confidence", torch.tensor([1.0, 0.8, 0.5, 0.01, 0.0]))
    assert isinstance(weights, torch.Tensor)
    assert weights.shape == (5, 1, 1)
    values = weights.flatten().tolist()
    assert values[0] < values[1] < values[2] < values[3]
    assert values[0] == 1.0
    torch.testing.assert_close(values[3:], [LARGEST] * 2, rtol=1e-6, atol=0)
