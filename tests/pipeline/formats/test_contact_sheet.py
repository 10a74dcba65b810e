from __future__ import annotations

import numpy as np
import pytest

from pipeline.formats.contact_sheet import EvenSample


@pytest.mark.parametrize("length", [0, 1, 4, 13, 100, 1001])
def test_frames_are_spread_evenly_from_the_first_and_few_are_kept(length: int) -> None:
    sample = EvenSample(4)
    for n in range(length):
        sample.add(np.full((1, 1, 3), n % 256, np.uint8))
    places = [place for place, _ in sample.items()]
    assert len(places) == min(4, length)
    assert places[:1] == [0][:length]
    assert all(int(picture[0, 0, 0]) == place % 256 for place, picture in sample.items())
    if length > 4:
        gaps = np.diff(places)
        assert gaps.max() - gaps.min() <= length / 6
        assert places[-1] >= 0.85 * (length - 1)
