"""The settings of propagation, and the windows they define."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from pipeline.core.config import StrictModel
from stages.propagate.kernel_choice import Kernel
from stages.propagate.label_maps import Sampling, Stretch
from stages.propagate.propagation import Window


class RefineConfig(StrictModel):
    """Smoothing of the soft maps along the frame's edges, for the output only."""

    enabled: bool = True
    cell_px: int = Field(7, ge=1)
    radius_px: int = Field(4, ge=1)
    epsilon: float = Field(1e-4, gt=0)
    crf_weight: float = Field(0.0, ge=0)


class TargetModelConfig(StrictModel):
    """Corrections by a classifier that is learned from the given masks."""

    weight: float = Field(0.0, ge=0, le=1)
    certainty: float = Field(0.3, ge=0, lt=1)
    band_cells: float = Field(1.0, ge=0)
    mask_weight: float = Field(0.0, ge=0, le=1)


class PropagateConfig(StrictModel):
    """The settings; every field is explained in ``configs/default.yaml``."""

    enabled: bool = True
    facets: tuple[str, ...] = ()
    color_weight: float = Field(0.0, ge=0, le=1)
    context_frames: int = Field(7, ge=0)
    max_references: int = Field(8, ge=1)
    prefix_copies: int = Field(0, ge=0)
    radius_cells: float = Field(12, ge=0)
    radius_unit: Literal["patch", "cell"] = "patch"
    search: Literal["auto", "exact", "coarse"] = "auto"
    window: Literal["square", "disc", "disc_inclusive"] = "square"
    window_on_references: bool = True
    prior_sigma_cells: float | None = Field(None, gt=0)
    prior_floor: float | None = Field(None, gt=0, le=1)
    prior_motion: bool = False
    max_step_cells: float | None = Field(None, gt=0)
    top_k: int = Field(5, ge=1)
    temperature: float = Field(0.1, gt=0)
    keep_ties: bool = True
    first_labels: Sampling = "area"
    label_cells: int = Field(1, ge=1, le=16)
    stretch: Stretch = "channel"
    object_weight: Annotated[float, Field(gt=0)] | Literal["confidence"] = 1.0
    upsample_factor: int | None = Field(None, ge=1)
    target_model: TargetModelConfig = TargetModelConfig()
    refine: RefineConfig = RefineConfig()
    discover_every: int = Field(12, ge=0)
    confirm_sightings: int = Field(2, ge=1, le=16)
    max_bytes: int = Field(256 * 2**20, ge=2**20)
    kernel: Kernel = "auto"


def make_windows(config: PropagateConfig) -> tuple[Window, Window]:
    """The windows on recent frames and on references."""
    window = Window(
        config.radius_cells or None,
        "square" if config.window == "square" else "disc",
        inclusive=config.window == "disc_inclusive",
    )
    return window, window if config.window_on_references else Window(None)


def at_distance(config: PropagateConfig, window: Window, frames_apart: int) -> Window:
    """The window on a frame so many frames back: the prior's variance grows linearly, as in a random walk."""
    if config.prior_sigma_cells is None:
        return window
    sigma = config.prior_sigma_cells * max(frames_apart, 1) ** 0.5
    frames = frames_apart if config.prior_motion else 0
    return replace(window, prior_sigma_cells=sigma, prior_floor=config.prior_floor, prior_frames=frames)
