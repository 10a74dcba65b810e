from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import run_pipeline
from pipeline.bench.gallery import encode_sheet
from pipeline.core.errors import ConfigError


def test_the_sheet_fits_its_limit_or_says_what_to_change() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    full, best = encode_sheet(noise, 10**6)
    less, worse = encode_sheet(noise, len(full) * 2 // 3)
    assert len(less) <= len(full) * 2 // 3
    assert worse < best
    with pytest.raises(ConfigError, match="--max-kb"):
        encode_sheet(noise, 100)


def test_a_sheet_that_is_no_jpeg_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_pipeline.main(["bench", "gallery", "video.mp4", "-o", str(tmp_path / "sheet.png")]) == 2
    assert ".jpg" in capsys.readouterr().err
