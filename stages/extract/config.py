"""Settings of the extract stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from pipeline.core.config import StrictModel
from pipeline.core.errors import ConfigError
from stages.extract.backbone.device import Precision
from stages.extract.backbone.facets import parse_facet
from stages.extract.backbone.registry import PositionConvention
from stages.extract.resize import ResizeMethod
from stages.extract.saliency import SaliencyCue


class ExtractConfig(StrictModel):
    """Settings of the extract stage; ``configs/default.yaml`` explains every field."""

    enabled: bool = True
    backbone: str = "dinov2_vits14"
    weights: str | None = None
    facets: tuple[str, ...] = ("key@11",)
    short_side: PositiveInt | None = 280
    long_side_multiple: PositiveInt | None = None
    input_hw: tuple[PositiveInt, PositiveInt] | None = None
    max_cells: PositiveInt = 16384
    resize: ResizeMethod = "area"
    stride_px: PositiveInt | None = None
    position: PositionConvention | None = None
    std_r: Annotated[float, Field(gt=0)] | None = None
    log_bins: NonNegativeInt = 0
    normalize: bool = False
    saliency: SaliencyCue = "auto"
    cls: Literal["facet", "final", "none"] = "none"
    lift: str = "auto"
    lift_iterations: PositiveInt = 1
    repair: Literal["none", "smooth"] = "none"
    drop_high_variance: NonNegativeInt = 0
    high_variance_indices: tuple[NonNegativeInt, ...] | None = None
    batch_size: PositiveInt | Literal["auto"] = "auto"
    compile: bool = False
    device: str = "auto"
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _check_facets(self) -> ExtractConfig:
        if not self.facets:
            raise ValueError("facets must name at least one facet, for example key@11")
        for text in self.facets:
            try:
                parse_facet(text)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return self
