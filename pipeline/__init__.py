"""liftstream: videos through a frozen Vision Transformer, to masks, parts and tracks.

``stream`` gives packets, ``run`` writes files; both take a :class:`FlowConfig`. See docs/python.md.

The names are loaded when they are first used, so that importing one module of the ground floor loads no models.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.core.records import (
        Detections,
        Features,
        Frame,
        LabelMap,
        Packet,
        PartMap,
        PatchGrid,
        Track,
        VideoInfo,
    )
    from pipeline.flow import FlowConfig, RunResult, load_flow_config, run, stream

__all__ = [
    "Detections",
    "Features",
    "FlowConfig",
    "Frame",
    "LabelMap",
    "Packet",
    "PartMap",
    "PatchGrid",
    "RunResult",
    "Track",
    "VideoInfo",
    "load_flow_config",
    "run",
    "stream",
]

_FLOW = ("FlowConfig", "RunResult", "load_flow_config", "run", "stream")


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'pipeline' has no attribute '{name}'")
    return getattr(importlib.import_module("pipeline.flow" if name in _FLOW else "pipeline.core.records"), name)
