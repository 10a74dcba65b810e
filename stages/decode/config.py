"""Settings of decode."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.core.config import StrictModel


class DecodeConfig(StrictModel):
    """Which part of the input is read, and how; ``configs/default.yaml`` explains each field."""

    backend: Literal["pyav", "decord"] = "pyav"
    start_seconds: float = Field(0.0, ge=0)
    end_seconds: float | None = Field(None, gt=0)
    every: int = Field(1, ge=1)
    image_frame_rate: float = Field(24.0, gt=0)

    @model_validator(mode="after")
    def _end_after_start(self) -> DecodeConfig:
        if self.end_seconds is not None and self.end_seconds <= self.start_seconds:
            raise ValueError(f"end_seconds {self.end_seconds} must be after start_seconds {self.start_seconds}")
        return self
