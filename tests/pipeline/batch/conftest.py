from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.batch.clips import make_clips, one_by_one


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the eight clips."""
    return make_clips(tmp_path_factory.mktemp("clips") / "in")


@pytest.fixture(scope="session")
def expected(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The hashes of what ``run`` makes of them one by one."""
    return one_by_one(clips, tmp_path_factory.mktemp("one-by-one"))
