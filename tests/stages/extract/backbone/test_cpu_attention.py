"""bf16 attention head by head against the same attention in fp32, and inside a whole forward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stages.extract.backbone.backbone import load_backbone
from stages.extract.backbone.cpu_attention import attend_by_head, is_faster
from stages.extract.backbone.device import autocast, store_matmul_weights
from stages.extract.backbone.facets import parse_facet


@pytest.mark.parametrize("tokens", [32, 33, 63, 64, 101])
@pytest.mark.parametrize("width", [16, 64])
def test_it_is_softmax_attention_up_to_rounding(tokens: int, width: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(2, 3, tokens, width, generator=generator).bfloat16() for _ in range(3))
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), scale=width**-0.5)
    with torch.inference_mode():
        found = attend_by_head(q, k, v, scale=width**-0.5)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)


def test_the_images_of_a_batch_do_not_touch() -> None:
    q, k, v = torch.randn(3, 3, 2, 40, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.inference_mode():
        together = attend_by_head(q, k, v, scale=0.25)
        for image in range(3):
            alone = attend_by_head(q[image, None], k[image, None], v[image, None], scale=0.25)
            assert torch.equal(together[image], alone[0])


def test_other_tensors_go_to_the_fused_kernel() -> None:
    query = torch.zeros(1, 1, 64, 8, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert is_faster(query, query)
        assert not is_faster(query.float(), query.float())
        assert not is_faster(query[:, :, :1], query)
        assert not is_faster(query[:, :, :16], query[:, :, :16])
        large = torch.empty(1, 1, 5000, 8, dtype=torch.bfloat16)
        assert not is_faster(large, large)
    assert not is_faster(query, query)  # gradients are wanted


def test_a_forward_in_bf16_keeps_the_direction_of_features() -> None:
    small = {"embed_dim": 96, "depth": 4, "num_heads": 3}
    images = torch.randn(2, 3, 112, 128, generator=torch.Generator().manual_seed(0))
    asked = [parse_facet("key@3"), parse_facet("token@3:norm")]
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        backbone = load_backbone("vit_tiny_patch16_224", weights="random", overrides=small)
        store_matmul_weights(backbone.vit, dtype)
        with torch.inference_mode(), autocast(torch.device("cpu"), dtype):
            found[dtype] = backbone(images, asked).maps
    for name in ("key@3", "token@3:norm"):
        cosine = torch.cosine_similarity(found[torch.float32][name], found[torch.bfloat16][name].float(), dim=1)
        assert cosine.min() > 0.99
        assert cosine.mean() > 0.999
