"""What a run writes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.core.config import StrictModel

EncoderPreset = Literal[
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
]


class WriteConfig(StrictModel):
    """What is written; every field is explained in ``configs/default.yaml``."""

    enabled: bool = True
    annotated_video: bool = True
    masks: bool = True
    parts: bool = True
    tracks: bool = True
    objects: bool = True
    report: bool = True
    crf: int = Field(20, ge=0, le=51)
    encoder_preset: EncoderPreset = "superfast"
    segment_frames: int = Field(64, ge=1)
    checkpoint_seconds: float = Field(60.0, gt=0)
    checkpoint_frames: int | None = Field(None, ge=1)
    segment_seconds: float | None = Field(None, gt=0, le=86_400)
    keep_last_seconds: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _segments_to_keep(self) -> WriteConfig:
        if self.keep_last_seconds is not None and self.segment_seconds is None:
            raise ValueError("keep_last_seconds removes segments; set segment_seconds too")
        return self
