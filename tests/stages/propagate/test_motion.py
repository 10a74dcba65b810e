from __future__ import annotations

import torch
import torch.nn.functional as F

from stages.propagate.motion import measure_motion, median_filter
from stages.propagate.windows import Window


def test_a_shifted_picture_moves_by_its_shift() -> None:
    earlier = F.normalize(torch.randn(16, 12, 14, generator=torch.Generator().manual_seed(0)), dim=0)
    target = torch.roll(earlier, (2, -3), dims=(1, 2))
    motion = measure_motion(target, earlier, Window(5), max_bytes=2**20)
    inner = motion[:, 4:-3, 3:-5]
    torch.testing.assert_close(inner[0], torch.full_like(inner[0], -2.0), atol=0.05, rtol=0)
    torch.testing.assert_close(inner[1], torch.full_like(inner[1], 3.0), atol=0.05, rtol=0)


def test_the_median_equals_a_loop() -> None:
    maps = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
    got = median_filter(maps)
    for row in range(5):
        for column in range(6):
            rows = [min(max(row + d, 0), 4) for d in (-1, 0, 1)]
            columns = [min(max(column + d, 0), 5) for d in (-1, 0, 1)]
            want = maps[:, rows][:, :, columns].flatten(1).median(dim=1).values
            torch.testing.assert_close(got[:, row, column], want)
