"""Where files that come with the project lie."""

from __future__ import annotations

from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[2]

CONFIGS = _PROJECT / "configs"
"""The configs and presets."""

DEMO_CLIP = _PROJECT / "tests" / "data" / "bigbuckbunny.mp4"
"""The bundled clip: 132 frames of 1280 x 720 at 25 frames per second."""
