"""Choosing the LiFT for a backbone and a facet: the bundled one, or a file that is checked to fit."""

from __future__ import annotations

from pathlib import Path

from pipeline.core.errors import ConfigError, WeightsError
from stages.extract.backbone.backbone import Backbone
from stages.extract.backbone.facets import FacetSpec
from stages.extract.lift.module import LoadedLift, find_bundled, load_lift


def choose_lift(choice: str, backbone: Backbone, facet: FacetSpec) -> LoadedLift | None:
    """Load a LiFT for a backbone's facet.

    Args:
        choice: ``auto`` for the bundled one, or a file.
        backbone: The backbone whose features are lifted.
        facet: The facet.

    Returns:
        The LiFT; None where ``choice`` is ``auto`` and none is bundled for this backbone with these weights and
        this facet.

    Raises:
        WeightsError: The named file is not a LiFT, or was trained for something else; lists every difference.
    """
    path = find_bundled(backbone.name, facet, backbone.num_layers) if choice == "auto" else Path(choice)
    if path is None:
        return None
    loaded = load_lift(path, patch_px=backbone.patch_px)
    try:
        loaded.require_match(
            backbone=backbone.name,
            facet=facet,
            num_layers=backbone.num_layers,
            patch_px=backbone.patch_px,
            weights_sha256=backbone.weights_sha256,
        )
    except WeightsError:
        if choice != "auto":
            raise
        return None
    return loaded


def require_lift(choice: str, backbone: Backbone, facet: FacetSpec) -> LoadedLift:
    """Like :func:`choose_lift`, for callers that need one.

    Raises:
        ConfigError: None is bundled for this backbone and facet.
        WeightsError: As :func:`choose_lift`.
    """
    loaded = choose_lift(choice, backbone, facet)
    if loaded is None:
        spec = facet.resolved(backbone.num_layers)
        raise ConfigError(
            f"there is no bundled LiFT for {spec} of {backbone.name}; train one with train-lift and "
            "name it with --lift"
        )
    return loaded
