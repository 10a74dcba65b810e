"""The config of the annotated picture."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.core.config import StrictModel


class AnnotateConfig(StrictModel):
    """What is drawn; ``configs/default.yaml`` explains every field."""

    enabled: bool = True
    layout: Literal["overlay", "grid"] = "overlay"
    part_opacity: float = Field(0.45, ge=0, le=1)
    object_opacity: float = Field(0.30, ge=0, le=1)
    outline_objects: bool = True
    trail_frames: int = Field(30, ge=0)
