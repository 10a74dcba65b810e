"""LiFT inside the extract stage: the grid doubles, and a file for something else is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.core.errors import WeightsError
from pipeline.core.records import Frame, Packet
from stages.extract import ExtractConfig, Extractor
from stages.extract.backbone.backbone import Backbone, load_backbone
from stages.extract.lift.module import Lift, LiftMetadata, save_lift


def _backbone(stride_px: int | None = None) -> Backbone:
    return load_backbone("dinov2_vits14", weights="random", stride_px=stride_px, overrides={"depth": 2})


@pytest.fixture
def lift_file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "lift.safetensors"
    save_lift(Lift(384, patch_px=14), LiftMetadata("dinov2_vits14", "key@1", 14), path)
    return path


def _run(config: ExtractConfig, backbone: Backbone) -> Packet:
    rng = np.random.default_rng(0)
    frame = Frame(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8), 0, 0.0)
    return next(iter(Extractor(config, backbone=backbone)([frame])))


@pytest.mark.parametrize(("stride", "iterations"), [(14, 1), (14, 2), (7, 1)])
def test_features_saliency_and_grid_double_together(lift_file: Path, stride: int, iterations: int) -> None:
    common: dict[str, Any] = {"facets": ("key@1", "token@1"), "short_side": 56, "device": "cpu"}
    plain = _run(ExtractConfig(**common, lift="none"), _backbone(stride)).features
    config = ExtractConfig(**common, lift=str(lift_file), lift_iterations=iterations)
    lifted = _run(config, _backbone(stride)).features
    assert plain is not None
    assert lifted is not None
    factor = 2**iterations
    assert lifted.grid.grid_hw == (plain.grid.grid_hw[0] * factor, plain.grid.grid_hw[1] * factor)
    assert lifted.grid.stride_px == tuple(s / factor for s in plain.grid.stride_px)
    assert tuple(lifted.data.shape[1:]) == lifted.grid.grid_hw
    assert tuple(lifted.extra["token@1"].shape[1:]) == lifted.grid.grid_hw
    # What LiFT was given stays with the features, as without it.
    assert lifted.coarse.grid == plain.grid
    assert torch.equal(lifted.coarse.data, plain.data)
    assert plain.coarse is plain
    assert plain.saliency is not None
    assert lifted.coarse.saliency is not None
    assert torch.equal(lifted.coarse.saliency, plain.saliency)
    # The outer border of the cells stays where it was.
    edges = [grid.offset_px[0] - grid.stride_px[0] / 2 for grid in (plain.grid, lifted.grid)]
    assert edges[0] == pytest.approx(edges[1])


def test_a_lift_for_another_facet_is_refused_with_the_reason(lift_file: Path) -> None:
    config = ExtractConfig(facets=("token@1",), short_side=56, device="cpu", lift=str(lift_file))
    with pytest.raises(WeightsError, match=r"facet token@1 \(trained for key@1\)"):
        Extractor(config, backbone=_backbone())


@pytest.mark.parametrize("settings", [{"normalize": True}, {"high_variance_indices": (0, 5)}])
def test_what_changes_the_channels_changes_those_before_lift_too(
    lift_file: Path, settings: dict[str, Any]
) -> None:
    common: dict[str, Any] = {"facets": ("key@1",), "short_side": 56, "device": "cpu", **settings}
    plain = _run(ExtractConfig(**common, lift="none"), _backbone()).features
    lifted = _run(ExtractConfig(**common, lift=str(lift_file)), _backbone()).features
    assert plain is not None
    assert lifted is not None
    assert torch.equal(lifted.coarse.data, plain.data)


def test_auto_takes_none_where_none_is_bundled() -> None:
    config = ExtractConfig(facets=("key@1",), short_side=56, device="cpu", lift="auto")
    packet = _run(config, _backbone())
    assert packet.features is not None
    assert packet.features.grid.grid_hw == (4, 6)
