"""Log binning against a loop over cells and bins."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages.extract.log_binning import log_bin


def naive(features: Tensor, hierarchy: int) -> Tensor:
    channels, height, width = features.shape

    def window_mean(level: int, row: int, column: int) -> Tensor:
        row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
        reach = 3**level // 2
        cells = [
            features[:, r, c]
            for r in range(row - reach, row + reach + 1)
            for c in range(column - reach, column + reach + 1)
            if 0 <= r < height and 0 <= c < width
        ]
        return torch.stack(cells).mean(0)

    out = torch.empty((1 + 8 * hierarchy) * channels, height, width)
    for row in range(height):
        for column in range(width):
            bins = []
            for level in range(hierarchy):
                step = 3**level
                for down in (-step, 0, step):
                    for right in (-step, 0, step):
                        if level == 0 or (down, right) != (0, 0):
                            bins.append(window_mean(level, row + down, column + right))
            out[:, row, column] = torch.cat(bins)
    return out


@pytest.mark.parametrize("hierarchy", [1, 2, 3])
@pytest.mark.parametrize("size", [(6, 9), (2, 3), (1, 1)])
def test_bins_equal_a_naive_loop(hierarchy: int, size: tuple[int, int]) -> None:
    features = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(log_bin(features, hierarchy), naive(features, hierarchy))


def test_two_levels_make_seventeen_bins_and_batches_are_independent() -> None:
    batch = torch.randn(2, 4, 5, 7)
    binned = log_bin(batch)
    assert binned.shape == (2, 17 * 4, 5, 7)
    torch.testing.assert_close(binned[1], log_bin(batch[1]))


def test_the_fifth_bin_of_the_first_level_is_the_cell_itself() -> None:
    features = torch.randn(4, 5, 7)
    assert torch.equal(log_bin(features)[16:20], features)


def test_no_level_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one level"):
        log_bin(torch.zeros(1, 2, 2), 0)
