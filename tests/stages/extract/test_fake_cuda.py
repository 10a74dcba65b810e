"""The extract stage's forward on a fake card: nothing mixes devices, and results stay on the card."""

from __future__ import annotations

import pytest
import torch

from stages.extract.backbone.backbone import load_backbone
from stages.extract.backbone.facets import parse_facet
from stages.extract.lift.network import Lift
from stages.extract.log_binning import log_bin
from stages.extract.repair.sinder import alignment, detect_defects
from stages.extract.saliency import SaliencyCue, SaliencyEstimator
from tests.fake_cuda import CUDA, fake_cuda, move

SMALL = {"embed_dim": 96, "depth": 3, "num_heads": 3}
KEYS = (parse_facet("key@2"),)


def test_mixed_devices_raise_and_brackets_work() -> None:
    with fake_cuda():
        card, host = torch.randn(3, 4, 5, device=CUDA), torch.randn(3, 4, 5)
        assert card[:, None, 1:, ..., 0].shape == (3, 1, 3)
        assert card[:, [0, 2]].shape == (3, 2, 5)
        with pytest.raises(RuntimeError, match="device"):
            _ = card + host


@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3_qkvb"])
def test_the_backbone_stays_on_the_card(name: str, stride: int) -> None:
    backbone = load_backbone(name, weights="random", overrides=SMALL, stride_px=stride)
    with fake_cuda():
        move(backbone)
        asked = [parse_facet("key@2"), parse_facet("token@1:norm"), parse_facet("query@0")]
        found = backbone(torch.randn(2, 3, 64, 96, device=CUDA), asked, saliency=True, cls="final")
        assert {values.device for values in found.maps.values()} == {CUDA}
        assert found.saliency is not None
        assert found.saliency.device == CUDA
        assert found.cls is not None
        assert found.cls.device == CUDA


@pytest.mark.parametrize("cue", ["cls_attention", "first_pc", "ncut"])
@pytest.mark.parametrize("size", [(64, 96), (640, 960)])
def test_every_cue_stays_on_the_card(cue: SaliencyCue, size: tuple[int, int]) -> None:
    backbone = load_backbone("vit_tiny_patch16_224", weights="random", overrides=SMALL)
    estimate = SaliencyEstimator(cue, KEYS, 3, final_cls=False)
    asked = KEYS if estimate.spec is None else (*KEYS, estimate.spec)
    with fake_cuda():
        move(backbone)
        output = backbone(torch.randn(2, 3, *size, device=CUDA), asked, saliency=cue == "cls_attention")
        saliency = estimate(output, output.maps["key@2"])
        assert saliency is not None
        assert saliency.device == CUDA
        assert saliency.shape == (2, size[0] // 16, size[1] // 16)


@pytest.mark.parametrize("patch", [8, 14, 16])
@pytest.mark.parametrize("iterations", [1, 2])
def test_lift_stays_on_the_card(patch: int, iterations: int) -> None:
    lift = Lift(48, patch_px=patch).eval()
    with fake_cuda():
        move(lift)
        images = torch.randn(2, 3, 4 * patch, 6 * patch, device=CUDA)
        features = torch.randn(2, 48, 4, 6, device=CUDA)
        found = lift(images, features, iterations=iterations)
        assert found.device == CUDA
        assert found.shape == (2, 48, 4 * 2**iterations, 6 * 2**iterations)


def test_log_binning_and_detection_stay_on_the_card() -> None:
    with fake_cuda():
        assert log_bin(torch.randn(2, 8, 5, 6, device=CUDA)).device == CUDA
        tokens = torch.randn(2, 9, 9, 48, device=CUDA)
        scores = alignment(tokens, torch.randn(48, device=CUDA))
        assert detect_defects(scores).device == CUDA
