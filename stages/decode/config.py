"""Settings of decode."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.core.config import StrictModel

MAX_SECONDS = 10_000_000.0
"""Latest start of a range, 115 days: arithmetic on it stays exact."""


class LiveConfig(StrictModel):
    """How streams are read; ``enabled`` prefers the newest frame to every frame."""

    enabled: bool = False
    max_latency_seconds: float = Field(1.0, gt=0, le=3600)
    reconnect: int = Field(10, ge=0, le=1_000_000)
    open_timeout_seconds: float = Field(10.0, gt=0, le=15)
    stall_seconds: float = Field(10.0, gt=0, le=15)
    rtsp_transport: Literal["tcp", "udp"] = "tcp"
    format: str | None = None
    options: dict[str, str] = Field(default_factory=dict)


class DecodeConfig(StrictModel):
    """Which part of the input is read, and how; ``configs/default.yaml`` explains each field."""

    backend: Literal["pyav", "decord", "torchcodec"] = "pyav"
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    stream: int | None = Field(None, ge=0)
    start_seconds: float = Field(0.0, ge=0, le=MAX_SECONDS)
    end_seconds: float | None = Field(None, gt=0)
    every: int = Field(1, ge=1, le=1_000_000_000)
    on_damage: Literal["continue", "stop"] = "continue"
    image_frame_rate: float = Field(24.0, ge=0.001, le=100_000)
    live: LiveConfig = LiveConfig()

    @model_validator(mode="after")
    def _end_after_start(self) -> DecodeConfig:
        if self.end_seconds is not None and self.end_seconds <= self.start_seconds:
            raise ValueError(f"end_seconds {self.end_seconds} must be after start_seconds {self.start_seconds}")
        return self

    @model_validator(mode="after")
    def _card_needs_torchcodec(self) -> DecodeConfig:
        if self.device != "cpu" and self.backend != "torchcodec":
            raise ValueError(f"device '{self.device}' needs backend torchcodec, not {self.backend}")
        return self
