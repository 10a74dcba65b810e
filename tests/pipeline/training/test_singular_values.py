from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.core.errors import ConfigError
from pipeline.training.singular_values import attach_shifts, clamp_singular_values, fold_shifts
from stages.extract.backbone.backbone import Backbone, load_backbone
from stages.extract.backbone.facets import parse_facet

FACETS = [parse_facet("token@-1"), parse_facet("value@0"), parse_facet("key@1")]


def make_backbone() -> Backbone:
    return load_backbone("vit_tiny_patch16_224", weights="random", overrides={"depth": 2, "img_size": 64})


def make_images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_a_zero_shift_keeps_every_bit() -> None:
    backbone, images = make_backbone(), make_images()
    weights = {name: value.clone() for name, value in backbone.vit.state_dict().items()}
    before = backbone(images, FACETS).maps
    attach_shifts(backbone.vit.blocks)
    for name, value in backbone(images, FACETS).maps.items():
        assert torch.equal(value, before[name])
    fold_shifts(backbone.vit.blocks)
    after = backbone.vit.state_dict()
    assert sorted(after) == sorted(weights)
    assert all(torch.equal(after[name], weights[name]) for name in weights)


def test_a_shifted_weight_is_the_decomposition_put_together_again() -> None:
    backbone = make_backbone()
    block: Any = backbone.vit.blocks[1]
    original = block.mlp.fc2.weight.detach().clone()
    shifts = attach_shifts(backbone.vit.blocks)
    shift = torch.linspace(-0.5, 0.5, len(shifts[1]["mlp.fc2"]))
    with torch.no_grad():
        shifts[1]["mlp.fc2"].copy_(shift)
    left, values, right = torch.linalg.svd(original, full_matrices=False)
    expected = left @ torch.diag(values + shift) @ right
    torch.testing.assert_close(block.mlp.fc2.weight.detach(), expected, rtol=1e-4, atol=1e-5)


def test_only_shifts_are_trainable_and_only_of_the_layers_meant() -> None:
    backbone = make_backbone()
    shifts = attach_shifts(backbone.vit.blocks)
    assert [sorted(block) for block in shifts] == [["attn.proj", "attn.qkv", "mlp.fc1", "mlp.fc2"]] * 2
    ours = {id(p) for block in shifts for p in block.values()}
    assert {id(p) for p in backbone.parameters() if p.requires_grad} == ours


def test_queries_and_keys_never_move() -> None:
    backbone = make_backbone()
    attention: Any = backbone.vit.blocks[0].attn
    before = attention.qkv.weight.detach().clone()
    shifts = attach_shifts(backbone.vit.blocks)
    with torch.no_grad():
        shifts[0]["attn.qkv"].fill_(0.3)
    fold_shifts(backbone.vit.blocks)
    after = attention.qkv.weight
    width = before.shape[1]
    assert torch.equal(after[: 2 * width], before[: 2 * width])
    value_before, value_after = (torch.linalg.svdvals(w[2 * width :]) for w in (before, after))
    torch.testing.assert_close(value_after, value_before + 0.3, rtol=1e-4, atol=1e-4)


def test_folding_leaves_plain_frozen_layers_with_the_same_output() -> None:
    backbone, images = make_backbone(), make_images()
    shifts = attach_shifts(backbone.vit.blocks)
    with torch.no_grad():
        for of_block in shifts:
            for parameter in of_block.values():
                parameter.uniform_(-0.2, 0.2, generator=torch.Generator().manual_seed(2))
    before = backbone(images, FACETS).maps
    fold_shifts(backbone.vit.blocks)
    for name, value in backbone(images, FACETS).maps.items():
        torch.testing.assert_close(value, before[name], rtol=1e-6, atol=1e-6)
    block: Any = backbone.vit.blocks[0]
    assert type(block.mlp.fc1) is nn.Linear
    assert not any(p.requires_grad for p in backbone.parameters())


def test_clamping_cuts_each_third_of_the_fused_layer_on_its_own() -> None:
    backbone = make_backbone()
    block: Any = backbone.vit.blocks[0]
    with torch.no_grad():
        block.attn.qkv.weight[384:] *= 100
    queries = block.attn.qkv.weight[:192].detach().clone()
    limit = float(torch.linalg.svdvals(queries)[0]) + 1e-3
    cut = clamp_singular_values(backbone.vit.blocks, limit)
    assert cut > 0
    assert torch.equal(block.attn.qkv.weight[:192], queries)
    for name, layer in backbone.vit.blocks.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        parts = layer.weight.chunk(3) if name.endswith("qkv") else (layer.weight,)
        assert max(float(torch.linalg.svdvals(part)[0]) for part in parts) <= limit * (1 + 1e-4)


def test_a_limit_above_all_singular_values_changes_nothing() -> None:
    backbone = make_backbone()
    before = {name: value.clone() for name, value in backbone.vit.state_dict().items()}
    assert clamp_singular_values(backbone.vit.blocks, 1e6) == 0
    assert all(torch.equal(value, before[name]) for name, value in backbone.vit.state_dict().items())


def test_wrong_limits_and_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be positive, got 0"):
        clamp_singular_values([], 0)
    with pytest.raises(ConfigError, match="no attention layer"):
        attach_shifts([nn.Sequential(nn.Linear(2, 2))])
