"""The forward over timm's blocks against timm itself, against hooks on it, and against naive loops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import pipeline.core.torchvision_ops  # noqa: F401  (before timm)
from pipeline.core.errors import ConfigError, WeightsError
from pipeline.core.grid import PatchGrid
from stages.extract.backbone.backbone import Backbone, load_backbone, stretch
from stages.extract.backbone.facets import parse_facet

SMALL = {"embed_dim": 96, "depth": 3, "num_heads": 3}


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def tiny(name: str = "vit_tiny_patch16_224", **arguments: Any) -> Backbone:
    return load_backbone(name, weights="random", overrides=dict(SMALL), **arguments)


def images(height: int = 64, width: int = 96, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def timm_twin(backbone: Backbone, overrides: dict[str, int] | None = None) -> Any:
    """timm's own model with the same weights, for any input size."""
    import timm

    own = timm.create_model(
        backbone.entry.timm_name, num_classes=0, dynamic_img_size=True, **(overrides or {})
    ).eval()
    own.load_state_dict(backbone.vit.state_dict(), strict=False)
    return own


def interleaved(projected: Tensor, heads: int, grid_hw: tuple[int, int]) -> Tensor:
    """(B, N, heads * dim) head-major to (B, dim * heads, h, w) with channel = dim * heads + head."""
    batch, _, channels = projected.shape
    out = torch.empty(batch, channels, *grid_hw)
    dim = channels // heads
    for head in range(heads):
        for d in range(dim):
            out[:, d * heads + head] = projected[:, :, head * dim + d].reshape(batch, *grid_hw)
    return out


def test_bundled_tokens_equal_timm() -> None:
    backbone = load_backbone("dinov2_vits14", position="timm")
    x = images(140, 224)
    final, layers = timm_twin(backbone).forward_intermediates(x, indices=[9, 11], norm=True)
    found = backbone(x, [parse_facet("token@9:norm"), parse_facet("token@-1:norm")], cls="final")
    for mine, theirs in zip(found.maps.values(), layers, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.cls, final[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("facet", ["query", "key", "value"])
@pytest.mark.parametrize("layer", [9, 11])
def test_bundled_projections_equal_a_hook_on_qkv_exactly(facet: str, layer: int) -> None:
    backbone = load_backbone("dinov2_vits14", position="timm")
    caught: list[Tensor] = []
    twin = timm_twin(backbone)
    twin.blocks[layer].attn.qkv.register_forward_hook(lambda *args: caught.append(args[2]))
    x = images(140, 224, batch=1)
    twin.forward_features(x)
    third = caught[0].chunk(3, dim=-1)[["query", "key", "value"].index(facet)][:, 1:]
    found = backbone(x, [parse_facet(f"{facet}@{layer}")]).maps[f"{facet}@{layer}"]
    assert torch.equal(found, interleaved(third, 6, (10, 16)))


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("dinov2_vits14_reg", {}),
        ("dinov3_vits16", {}),
        ("dinov3_vits16plus", {}),
        ("dinov2_vitg14", {"num_heads": 3}),
        ("vit_base_patch16_clip_224", {}),
        ("deit3_small_patch16_224", {}),
        ("vit_base_patch16_rope_224", {}),
        ("vit_small_patch16_rope_mixed_224", {}),
    ],
)
def test_other_architectures_equal_timm(name: str, extra: dict[str, int]) -> None:
    overrides = SMALL | extra
    backbone = load_backbone(name, weights="random", overrides=overrides, position="timm")
    with torch.no_grad():
        for parameter in backbone.parameters():  # biases, registers and layer scales are not zero or one
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    twin = timm_twin(backbone, overrides)
    x = images(backbone.patch_px * 4, backbone.patch_px * 6)
    _, layers = twin.forward_intermediates(x, indices=[0, 2], norm=True)
    found = backbone(x, [parse_facet("token@0:norm"), parse_facet("token@2:norm")], saliency=True, cls="final")
    for mine, theirs in zip(found.maps.values(), layers, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    lean = backbone(x, [parse_facet("key@2")], saliency=True, cls="final")
    torch.testing.assert_close(lean.cls, found.cls, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lean.saliency, found.saliency, rtol=1e-4, atol=1e-5)


def test_facets_asked_for_together_equal_each_alone() -> None:
    backbone = tiny()
    names = ["key@2", "token@2:norm", "query@0", "value@1", "token@1", "token@1:norm", "key@-1"]
    together = backbone(images(), [parse_facet(n) for n in names], saliency=True).maps
    assert list(together) == names
    for name in names:
        alone = backbone(images(), [parse_facet(name)]).maps[name]
        torch.testing.assert_close(together[name], alone, rtol=1e-5, atol=1e-6)


def test_asking_more_does_not_change_stored_tokens() -> None:
    # Later blocks work in place; a stored layer must not be overwritten.
    backbone = tiny()
    early = backbone(images(), [parse_facet("token@0")]).maps["token@0"]
    both = backbone(images(), [parse_facet("token@0"), parse_facet("token@2")]).maps["token@0"]
    torch.testing.assert_close(early, both)


def test_only_what_is_needed_is_computed() -> None:
    backbone = tiny()
    ran: list[str] = []
    for name, module in backbone.vit.named_modules():
        if name.startswith("blocks.") and name.count(".") >= 2:
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    backbone(images(), [parse_facet("key@1")])
    assert not [name for name in ran if name.startswith("blocks.2")]
    assert {name for name in ran if name.startswith("blocks.1.")} == {"blocks.1.norm1"}
    ran.clear()
    backbone(images(), [parse_facet("key@2")], saliency=True)
    assert not {name for name in ran if name.startswith("blocks.2.") and ("mlp" in name or "proj" in name)}


def cls_rows(attention: Any, normed: Tensor, heads: int) -> Tensor:
    """Attention of the CLS token over the patches, ``(B, heads, cells)``, from whole attention matrices."""
    query, key, _ = attention.qkv(normed).chunk(3, dim=-1)
    width = query.shape[-1] // heads
    rows = []
    for head in range(heads):
        q, k = (part[..., head * width : (head + 1) * width] for part in (query, key))
        rows.append(torch.softmax(q @ k.transpose(1, 2) * width**-0.5, dim=-1)[:, 0, 1:])
    return torch.stack(rows, dim=1)


def test_saliency_is_the_cls_row_of_the_attention_matrix() -> None:
    backbone = tiny()
    caught: list[Tensor] = []
    hook = backbone.vit.blocks[2].norm1.register_forward_hook(lambda *args: caught.append(args[2]))
    found = backbone(images(), [parse_facet("key@2")], saliency=True)
    hook.remove()
    rows = cls_rows(backbone.vit.blocks[2].attn, caught[0], heads=3)
    for image in range(2):
        mean = rows[image].mean(0).reshape(4, 6)
        expected = (mean - mean.min()) / (mean.max() - mean.min())
        torch.testing.assert_close(found.saliency[image], expected, rtol=1e-4, atol=1e-5)


def test_dino_vits8_takes_four_heads() -> None:
    backbone = load_backbone("dino_vits8", weights="random", overrides={"depth": 1})
    caught: list[Tensor] = []
    hook = backbone.vit.blocks[0].norm1.register_forward_hook(lambda *args: caught.append(args[2]))
    found = backbone(images(), [parse_facet("key@0")], saliency=True)
    hook.remove()
    rows = cls_rows(backbone.vit.blocks[0].attn, caught[0], heads=6)
    expected = rows[:, [0, 2, 4, 5]].mean(1).reshape(2, *found.maps["key@0"].shape[-2:])
    torch.testing.assert_close(found.saliency, stretch(expected), rtol=1e-4, atol=1e-4)


def test_cls_of_a_facet_is_that_facet_at_the_cls_token() -> None:
    backbone = tiny()
    caught: list[Tensor] = []
    backbone.vit.blocks[2].norm1.register_forward_hook(lambda *args: caught.append(args[2]))
    found = backbone(images(), [parse_facet("key@2")], cls="facet")
    key = backbone.vit.blocks[2].attn.qkv(caught[0][:, :1]).chunk(3, dim=-1)[1]
    torch.testing.assert_close(found.cls, interleaved(key, 3, (1, 1))[:, :, 0, 0])


@pytest.mark.parametrize(("patch", "stride"), [(16, 16), (16, 8), (16, 4), (8, 4), (8, 2), (14, 7)])
@pytest.mark.parametrize("size", [(48, 64), (50, 71), (33, 47), (16, 16)])
def test_strided_patches_and_their_centers_equal_a_naive_loop(
    patch: int, stride: int, size: tuple[int, int]
) -> None:
    name = {16: "vit_tiny_patch16_224", 8: "vit_small_patch8_224", 14: "dinov2_vits14"}[patch]
    backbone = load_backbone(name, weights="random", overrides={**SMALL, "depth": 1}, stride_px=stride)
    backbone.vit.pos_embed.zero_()
    x = images(*size, batch=1)
    tokens, _, grid_hw = backbone.embed(x)
    grid = backbone.grid((100, 200), size)
    assert grid.grid_hw == grid_hw
    weight, bias = backbone.vit.patch_embed.proj.weight, backbone.vit.patch_embed.proj.bias
    centers = grid.cell_centers()
    cell = 1
    for row, top in enumerate(range(0, size[0] - patch + 1, stride)):
        for column, left in enumerate(range(0, size[1] - patch + 1, stride)):
            window = x[0, :, top : top + patch, left : left + patch]
            expected = (weight * window).sum(dim=(1, 2, 3)) + bias
            torch.testing.assert_close(tokens[0, cell], expected, rtol=1e-4, atol=1e-4)
            middle = ((left + patch / 2) * 200 / size[1], (top + patch / 2) * 100 / size[0])
            assert centers[row, column].tolist() == pytest.approx(middle, rel=1e-5)
            cell += 1
    assert tokens.shape[1] == cell
    assert isinstance(grid, PatchGrid)


def test_a_cached_position_embedding_follows_the_grid() -> None:
    backbone = tiny()
    first = backbone(images(64, 96), [parse_facet("token@0")]).maps["token@0"]
    backbone(images(96, 64), [parse_facet("token@0")])
    again = backbone(images(64, 96), [parse_facet("token@0")]).maps["token@0"]
    assert torch.equal(first, again)


def test_a_token_hook_sees_every_block_and_replaces_the_tokens() -> None:
    backbone = tiny()
    seen: list[tuple[int, tuple[int, int]]] = []

    def hook(layer: int, tokens: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        seen.append((layer, grid_hw))
        return torch.zeros_like(tokens) if layer == 2 else tokens

    backbone.token_hook = hook
    found = backbone(images(), [parse_facet("token@2")]).maps["token@2"]
    assert seen == [(0, (4, 6)), (1, (4, 6)), (2, (4, 6))]
    assert not found.any()


def test_bad_requests_say_what_is_valid() -> None:
    backbone = tiny()
    with pytest.raises(ConfigError, match="valid: 0 to 2"):
        backbone(images(), [parse_facet("key@3")])
    with pytest.raises(ConfigError, match="smaller than one patch of 16"):
        backbone(images(15, 32), [parse_facet("key@2")])
    with pytest.raises(ConfigError, match=r"valid: \[1, 2, 4, 8, 16\]"):
        tiny(stride_px=5)
    with pytest.raises(ConfigError, match="at least one facet"):
        backbone(images(), [])
    with pytest.raises(ConfigError, match="did you mean"):
        load_backbone("dinov2_vit14s", weights="random")
    with pytest.raises(ConfigError, match="relative position bias"):
        load_backbone("simmim_vitb16")
    with pytest.raises(ConfigError, match="not a plain ViT"):
        load_backbone("resnet18", weights="random")
    with pytest.raises(WeightsError, match="official checkpoint"):
        load_backbone("ibot_vits16")


def test_a_model_without_a_cls_token_gives_no_saliency() -> None:
    backbone = load_backbone("vit_base_patch16_siglip_224", weights="random", overrides=dict(SMALL))
    assert backbone.num_prefix_tokens == 0
    assert backbone(images(), [parse_facet("token@2")]).maps["token@2"].shape == (2, 96, 4, 6)
    with pytest.raises(ConfigError, match="no CLS token"):
        backbone(images(), [parse_facet("key@2")], saliency=True)


def test_random_weights_are_the_same_every_time() -> None:
    first, second = tiny(), tiny()
    assert torch.equal(first.vit.blocks[0].attn.qkv.weight, second.vit.blocks[0].attn.qkv.weight)
    assert not any(parameter.requires_grad for parameter in first.parameters())
    assert not first.training
