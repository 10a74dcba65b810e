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
    from pipeline.prompts.prompt import Box, Point

__all__ = [
    "Box",
    "Detections",
    "Features",
    "FlowConfig",
    "Frame",
    "LabelMap",
    "Packet",
    "PartMap",
    "PatchGrid",
    "Point",
    "RunResult",
    "Track",
    "VideoInfo",
    "load_flow_config",
    "run",
    "stream",
]

_FLOW = ("FlowConfig", "RunResult", "load_flow_config", "run", "stream")
_PROMPTS = ("Box", "Point")


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'pipeline' has no attribute '{name}'")
    module = "flow" if name in _FLOW else "prompts.prompt" if name in _PROMPTS else "core.records"
    return getattr(importlib.import_module(f"pipeline.{module}"), name)
