"""Packed bf16 blocks against the same blocks in fp32, and where they are used."""

from __future__ import annotations

import pytest
import torch

from stages.extract.backbone.backbone import Backbone, load_backbone
from stages.extract.backbone.cpu_blocks import is_served, pack_blocks
from stages.extract.backbone.device import autocast, store_matmul_weights
from stages.extract.backbone.facets import parse_facet

_SMALL = {"embed_dim": 96, "depth": 4, "num_heads": 3}
_ASKED = [parse_facet(text) for text in ("key@3", "key@2", "query@1", "value@0", "token@2", "token@3:norm")]

pytestmark = pytest.mark.skipif(
    not pack_blocks([load_backbone("dinov2_vits14", weights="random", overrides=_SMALL).vit.blocks[0]]),
    reason="this build of torch has no packed linear layers",
)


def _backbone(name: str = "dinov2_vits14") -> Backbone:
    backbone = load_backbone(name, weights="random", overrides=_SMALL)
    for block in backbone.vit.blocks:
        for scale in (block.ls1, block.ls2):
            if hasattr(scale, "gamma"):  # as trained: not one and the same for every channel
                scale.gamma.data = torch.linspace(-0.5, 1.5, len(scale.gamma))
    return backbone


def _in_bf16(backbone: Backbone) -> Backbone:
    backbone.pack_for_cpu()
    store_matmul_weights(backbone.vit, torch.bfloat16)
    return backbone


@pytest.mark.parametrize("name", ["dinov2_vits14", "vit_tiny_patch16_224"])
def test_every_facet_keeps_its_values_up_to_rounding(name: str) -> None:
    images = torch.randn(2, 3, 112, 128, generator=torch.Generator().manual_seed(0))
    expected = _backbone(name)
    packed = _in_bf16(_backbone(name))
    with torch.inference_mode():
        want = expected(images, _ASKED, cls="final")
        with autocast(images.device, torch.bfloat16):
            found = packed(images, _ASKED, cls="final")
    for spec in map(str, _ASKED):
        scale = want.maps[spec].std()
        error = (found.maps[spec].float() - want.maps[spec]).abs() / scale
        assert found.maps[spec].shape == want.maps[spec].shape
        assert error.mean() < 0.02, spec
        assert error.max() < 0.2, spec
    assert torch.cosine_similarity(found.cls.float(), want.cls).min() > 0.999


def test_padding_and_other_images_change_nothing() -> None:
    """The images of a batch do not touch, and a grid that needs no padding gives what one with padding gives."""
    packed = _in_bf16(_backbone())
    images = torch.randn(3, 3, 84, 140, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), autocast(images.device, torch.bfloat16):
        together = packed(images, _ASKED[:1]).maps["key@3"]
        for image in range(3):
            alone = packed(images[image, None], _ASKED[:1]).maps["key@3"][0]
            torch.testing.assert_close(together[image], alone, rtol=0.02, atol=0.02)


def test_the_packed_blocks_run_only_where_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []

    def noted(blocks: list[object], tokens: torch.Tensor, wanted: object) -> torch.Tensor:
        used.append(len(blocks))
        return tokens

    monkeypatch.setattr("stages.extract.backbone.backbone.run_blocks", noted)
    packed = _in_bf16(_backbone())
    images = torch.zeros(1, 3, 112, 128)

    def ask(**options: object) -> None:
        with torch.inference_mode(), autocast(images.device, torch.bfloat16):
            packed(images, [parse_facet("token@3")], **options)

    with pytest.raises(KeyError):  # its stand-in leaves no tokens
        ask()
    ask(saliency=True)  # the last layer's attention is read
    packed.token_hook = lambda layer, tokens, grid_hw: tokens
    ask()
    assert used == [4, 3]
    assert not is_served(torch.zeros(1, 31, 96))
    with torch.inference_mode():
        assert is_served(torch.zeros(1, 32, 96))
        assert not is_served(torch.zeros(1, 5000, 96))


def test_blocks_with_other_parts_are_not_packed() -> None:
    plain = _backbone().vit.blocks
    assert len(pack_blocks(list(plain))) == 4
    plain[2].attn.q_norm = torch.nn.LayerNorm(32)
    assert pack_blocks(list(plain)) == []
    assert pack_blocks([torch.nn.Identity()]) == []
