from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import run_pipeline
from pipeline.bench.gallery import EvenSample, encode_within
from pipeline.core.errors import ConfigError


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


def test_the_sheet_fits_its_limit_or_says_what_to_change() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    full, best = encode_within(noise, 10**6)
    less, worse = encode_within(noise, len(full) * 2 // 3)
    assert len(less) <= len(full) * 2 // 3
    assert worse < best
    with pytest.raises(ConfigError, match="--max-kb"):
        encode_within(noise, 100)


def test_a_sheet_that_is_no_jpeg_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_pipeline.main(["bench", "gallery", "video.mp4", "-o", str(tmp_path / "sheet.png")]) == 2
    assert ".jpg" in capsys.readouterr().err
