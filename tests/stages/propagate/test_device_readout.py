"""What is read out on a card equals what is read out on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.core.device_filter import DeviceGuidedFilter
from pipeline.core.guided_filter import GuidedFilter
from pipeline.core.records import PatchGrid
from stages.propagate.config import PropagateConfig
from stages.propagate.device_readout import follow_edges_everywhere, iou_on_device, read_out
from stages.propagate.edges import follow_edges
from stages.propagate.label_maps import decode_labels, expected_iou, refine_labels
from stages.propagate.propagation import propagate_labels
from stages.propagate.readout import read_out as read_out_on_host
from stages.propagate.selection import Scores, Selection
from stages.propagate.windows import Window
from tests.simulated_device import SimulatedDevice
from tests.stages.propagate.test_propagation import random_inputs

RANDOM = np.random.default_rng(0)
GRID = PatchGrid.from_input((60, 84), (56, 84), patch_px=14, stride_px=14)
IMAGE = np.kron(RANDOM.integers(0, 256, (5, 7, 3)), np.ones((12, 12, 1))).astype(np.uint8)


def soft(channels: int, height: int, width: int) -> Tensor:
    values = torch.from_numpy(RANDOM.random((channels, height, width)).astype(np.float32))
    return values / values.sum(0)


def test_the_guided_filter_on_tensors_is_that_on_arrays() -> None:
    guide = RANDOM.random((20, 30, 3)).astype(np.float32)
    values = RANDOM.random((20, 30)).astype(np.float32)
    want = GuidedFilter(guide, radius_px=4, epsilon=1e-3)(values)
    smooth = DeviceGuidedFilter(torch.from_numpy(guide).permute(2, 0, 1), radius_px=4, epsilon=1e-3)
    np.testing.assert_allclose(smooth(torch.from_numpy(values)).numpy(), want, atol=2e-4)


def test_edges_followed_everywhere_are_those_followed_in_the_band() -> None:
    import cv2

    probs = soft(3, 18, 20)
    probs[1, :6], probs[[0, 2], :6] = 1.0, 0.0  # certain
    guide = np.kron(RANDOM.random((3, 4, 3)), np.ones((6, 5, 1))).astype(np.float32)
    lab = torch.from_numpy(cv2.cvtColor(guide, cv2.COLOR_RGB2LAB)).permute(2, 0, 1)
    found = follow_edges_everywhere(probs, lab, weight=3.0)
    torch.testing.assert_close(found, follow_edges(probs, guide, weight=3.0), rtol=1e-3, atol=1e-4)


def test_the_confidence_is_the_same() -> None:
    fine, estimate = soft(4, 8, 9), soft(4, 8, 9)
    fine[2] = 0  # wins nowhere
    torch.testing.assert_close(iou_on_device(fine, estimate), torch.tensor(expected_iou(fine, estimate)))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"refine": {"crf_weight": 2.0}},
        {"refine": {"enabled": False}, "upsample_factor": 14, "stretch": "channel"},
        {"label_cells": 2, "object_weight": 1.2, "stretch": "none"},
    ],
)
def test_masks_are_those_of_the_host(settings: dict[str, Any]) -> None:
    config = PropagateConfig.model_validate(settings)
    fine = soft(3, GRID.grid_hw[0] * config.label_cells, GRID.grid_hw[1] * config.label_cells) ** 3
    fine = fine / fine.sum(0)
    refine = config.refine
    shared: Any = {"stretch": config.stretch, "object_weight": config.object_weight}
    if refine.enabled:
        maps = refine_labels(
            fine, IMAGE, GRID, cell_px=refine.cell_px, radius_px=refine.radius_px, epsilon=refine.epsilon,
            crf_weight=refine.crf_weight, **shared,
        )  # fmt: skip
        want = decode_labels(maps, [3, 7], PatchGrid.covering(GRID.image_hw, (maps.shape[1], maps.shape[2])))
    else:
        want = decode_labels(fine, [3, 7], GRID, upsample_factor=config.upsample_factor, **shared)
    found = read_out(fine, fine, IMAGE, GRID, (3, 7), config)
    assert found.index_mask.dtype == np.uint8
    assert (found.index_mask != want).mean() < 0.005
    np.testing.assert_allclose(found.confidence, expected_iou(fine), rtol=1e-5)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_confidence_sets_the_threshold_as_on_the_host(enabled: bool) -> None:
    settings = {"object_weight": "confidence", "refine": {"enabled": enabled, "crf_weight": 1.0}}
    config = PropagateConfig.model_validate(settings)
    fine = soft(3, *GRID.grid_hw)
    want = read_out_on_host(fine, fine, IMAGE, GRID, (3, 7), config, shown=fine)
    found = read_out(fine, fine, IMAGE, GRID, (3, 7), config)
    assert (found.index_mask != want.index_mask).mean() < 0.005
    plain = read_out(fine, fine, IMAGE, GRID, (3, 7), config.model_copy(update={"object_weight": 1.0}))
    assert (found.index_mask > 0).sum() > (plain.index_mask > 0).sum()


def test_the_mask_may_be_made_of_other_labels_than_are_remembered() -> None:
    fine, shown, config = soft(3, *GRID.grid_hw), soft(3, *GRID.grid_hw).flip(2), PropagateConfig()
    found = read_out(fine, fine, IMAGE, GRID, (3, 7), config, shown=shown)
    assert torch.equal(found.fine, fine)
    np.testing.assert_array_equal(found.index_mask, read_out(shown, shown, IMAGE, GRID, (3, 7), config).index_mask)
    np.testing.assert_allclose(found.confidence, expected_iou(fine), rtol=1e-5)


def test_a_mask_comes_from_a_late_device_in_one_copy() -> None:
    fine, config = soft(3, *GRID.grid_hw), PropagateConfig()
    want = read_out(fine, fine, IMAGE, GRID, (3, 7), config)
    with SimulatedDevice() as device:
        host = device.pinned(tuple(fine.shape), torch.float32)
        device.touch(host, write=True)
        host.copy_(fine)
        late = device.upload(host)
        found = read_out(late, late, IMAGE, GRID, (3, 7), config, device)
        assert device.races == []
        assert device.host_reads == []
    assert (found.index_mask != want.index_mask).mean() < 0.005
    np.testing.assert_allclose(found.confidence, want.confidence, rtol=1e-5)


def test_votes_without_asking_for_ties_are_those_with_them() -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(-1, 2, (2, 3, 4, 5), generator=generator).float()
    cells = torch.randint(-1, 2, (6, 5), generator=generator).float()
    scored = [Scores.of(cells, keys, torch.zeros(6, 1, 12), torch.rand(3, 2, 3, 4, generator=generator))]
    selection = Selection(4, 0.5, keep_ties=True)
    torch.testing.assert_close(selection._vote_of_ties(scored, None), selection.vote(scored))
    target, contexts, labels = random_inputs((8, 7, 6), 2, 2)
    windows = [Window(2, prior_sigma_cells=1.0), Window(2)]
    assert propagate_labels(target, contexts, labels, windows=windows).isfinite().all()
