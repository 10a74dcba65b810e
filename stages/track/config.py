"""The config of tracking: how a box is described and how boxes become tracks."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from pipeline.core.config import StrictModel
from stages.track.kalman import MotionNoise
from stages.track.roi_align import RoiAlignSpec


class AssociationConfig(StrictModel):
    """How boxes become tracks. ``configs/tracking.yaml`` gives the reason for each value."""

    RENAMED: ClassVar[dict[str, str]] = {
        "sure_score": "high_score",
        "birth_score": "start_score",
        "min_similarity_weak": "min_similarity_low",
        "min_similarity_return": "min_similarity_lost",
        "unlike_cosine": "different_cosine",
        "restlessness_rate": "noise_adaptation_rate",
        "restlessness_limit": "noise_adaptation_limit",
    }

    min_score: float = 0.1
    high_score: float = 0.6
    start_score: float = 0.6
    confirm_score: float = 0.6
    confirm_hits: int = Field(2, ge=1)
    appearance_weight: float = Field(0.5, ge=0, le=1)
    widen: float = Field(0.6, ge=0, le=2)
    min_similarity: float = Field(0.2, ge=0, le=1)
    min_similarity_low: float = Field(0.5, ge=0, le=1)
    min_similarity_lost: float = Field(0.6, ge=0, le=1)
    duplicate_iou: float = Field(0.85, gt=0, le=1)
    max_age_seconds: float = Field(1.0, ge=0)
    tentative_age_seconds: float = Field(0.25, ge=0)
    coast_seconds: float = Field(0.25, ge=0)
    coast_similarity: float = Field(0.8, ge=0, le=1)
    memory_seconds: float = Field(30.0, ge=0)
    max_lost: int = Field(100, ge=0)
    gallery_size: int = Field(8, ge=1)
    gallery_redundant: float = Field(0.97, ge=-1, le=1)
    forgetting: float = Field(0.1, ge=0)
    different_cosine: float = Field(0.2, ge=-1, lt=1)
    measurement_noise: float = Field(0.025, gt=0)
    measurement_noise_size: float = Field(0.02, gt=0)
    acceleration_noise: float = Field(4.0, gt=0)
    acceleration_noise_size: float = Field(0.5, gt=0)
    velocity_noise: float = Field(10.0, gt=0)
    velocity_noise_size: float = Field(4.0, gt=0)
    noise_adaptation_rate: float = Field(0.1, ge=0)
    noise_adaptation_limit: float = Field(32.0, ge=1)

    @property
    def noise(self) -> MotionNoise:
        """The values of the motion model."""
        return MotionNoise(
            self.measurement_noise,
            self.measurement_noise_size,
            self.acceleration_noise,
            self.acceleration_noise_size,
            self.velocity_noise,
            self.velocity_noise_size,
        )


class RoiConfig(StrictModel):
    """How a box becomes a descriptor."""

    bins: int = Field(3, ge=1, le=16)
    sampling_ratio: int = Field(0, ge=0, le=16)
    aligned: bool = True
    weighting: Literal["none", "saliency", "mask"] = "none"
    weight_floor: float = Field(0.1, ge=0, le=1)

    @property
    def spec(self) -> RoiAlignSpec:
        """The pooling these values describe."""
        return RoiAlignSpec((self.bins, self.bins), self.sampling_ratio, self.aligned)


class TrackConfig(StrictModel):
    """Tracking: what describes a box, and how boxes become tracks."""

    enabled: bool = True
    facet: str = ""
    center: bool = True
    embeddings: bool = False
    roi: RoiConfig = RoiConfig()
    association: AssociationConfig = AssociationConfig()
