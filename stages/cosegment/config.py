"""Settings of the co-segmentation stage."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from pipeline.core.config import StrictModel
from stages.cosegment.codebook import Cues, FitOptions, ForegroundMethod
from stages.cosegment.cosegmentation import KmeansOptions
from stages.cosegment.part_maps import Refinement


class CosegmentConfig(StrictModel):
    """Settings of the co-segmentation stage; ``configs/default.yaml`` explains every field."""

    REMOVED: ClassVar[tuple[str, ...]] = ("spool_folder",)

    enabled: bool = True
    mode: Literal["streaming", "two_pass"] = "streaming"
    warmup_frames: int = Field(16, ge=1, le=256)
    hold_back: bool = True
    foreground: ForegroundMethod = "discriminant"
    cues: Cues = "both"
    num_parts: int | None = Field(3, ge=1, le=64)
    part_space: Literal["auto", "none"] = "auto"
    three_stage: bool = False
    part_elbow: float = Field(0.94, gt=0, le=1)
    max_clusters: int = Field(14, ge=2, le=64)
    elbow: float = Field(0.975, gt=0, le=1)
    saliency_threshold: float = Field(2.0, gt=0)
    votes_percent: float = Field(50.0, gt=0, le=100)
    sample_interval: int = Field(8, ge=1)
    kmeans_iterations: int = Field(50, ge=1)
    kmeans_redo: int = Field(3, ge=1)
    forgetting: float = Field(0.98, gt=0, le=1)
    cut_similarity: float = Field(0.77, ge=0, le=1)
    cut_drop: float = Field(0.1, ge=0, le=1)
    break_ratio: float = Field(2.0, gt=1)
    break_frames: int = Field(3, ge=1)
    match_distance: float = Field(0.3, gt=0, le=4)
    min_component_share: float = Field(0.05, ge=0, le=1)
    drop_still: bool = True
    foreground_memory: float = Field(0.6, ge=0, lt=1)
    part_memory: float = Field(0.97, ge=0, lt=1)
    refine: Refinement = "guided"
    part_ids: bool = False
    reservoir_frames: int = Field(48, ge=2, le=1024)
    objects_every: int = Field(0, ge=0)

    def fit_options(self) -> FitOptions:
        """How codebooks are fitted."""
        return FitOptions(
            kmeans=KmeansOptions(
                elbow=self.elbow,
                max_clusters=self.max_clusters,
                iterations=self.kmeans_iterations,
                redo=self.kmeans_redo,
                sample_interval=self.sample_interval,
            ),
            foreground=self.foreground,
            cues=self.cues,
            num_parts=self.num_parts,
            three_stage=self.three_stage,
            part_elbow=self.part_elbow,
            saliency_threshold=self.saliency_threshold,
            votes_percent=self.votes_percent,
        )
