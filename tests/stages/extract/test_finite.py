"""Features that are NaN or infinite are found, and named by image and facet."""

from __future__ import annotations

import pytest
import torch

from pipeline.core.grid import PatchGrid
from pipeline.core.records import Features
from stages.extract.finite import NotFinite, first_not_finite

GRID = PatchGrid((28, 42), (2, 3), (14.0, 14.0), (7.0, 7.0))


def batch() -> list[Features]:
    values = torch.randn(3, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    return [Features(data, GRID, extra={"token@1": 2 * data}) for data in values]


def test_finite_features_pass_even_where_their_sum_overflows() -> None:
    features = batch()
    assert first_not_finite(features, ["key@1", "token@1"]) is None
    features[1].data[:] = torch.finfo(torch.float32).max
    assert first_not_finite(features, ["key@1", "token@1"]) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_first_bad_image_and_its_facet_are_named(value: float) -> None:
    features = batch()
    features[1].extra["token@1"][2, 1, 1] = value
    features[2].data[0] = value
    assert first_not_finite(features, ["key@1", "token@1"]) == NotFinite(1, "token@1", 1, 24)
    features[1].data[0, 0, :2] = torch.tensor([value, -value])
    assert first_not_finite(features, ["key@1", "token@1"]) == NotFinite(1, "key@1", 2, 24)
