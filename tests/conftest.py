from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of measuring data beside the checkout; tests that need it skip where it is absent."""
    path = REPOSITORY.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"needs the measuring data in {path}")
    return path


@pytest.fixture(scope="session")
def clip() -> Path:
    """The bundled clip: 132 frames of 1280 x 720 at 25 a second."""
    return REPOSITORY / "tests" / "data" / "bigbuckbunny.mp4"
