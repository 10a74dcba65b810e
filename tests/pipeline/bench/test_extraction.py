"""The extraction benchmark runs and compares like with like."""

from __future__ import annotations

import pytest
import torch

import run_pipeline
from pipeline.bench.extraction import _forward_operations, _variants
from stages.extract.backbone.backbone import BackboneOutput, load_backbone


def test_every_variant_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "bench extraction --backbone vit_tiny_patch16_224 --weights random --height 64 --width 64"
    assert run_pipeline.main([*arguments.split(), "--repeats", "2", "--device", "cpu"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert all(text in printed for text in ("timm", "tokens", "keys", "saliency"))


def test_both_forwards_give_the_same_tokens() -> None:
    model = load_backbone("vit_tiny_patch16_224", weights="random", position="timm")
    with torch.inference_mode():
        timm, own, *_ = (
            forward() for forward in _variants(model, torch.randn(1, 3, 64, 96), torch.float32).values()
        )
        assert isinstance(own, BackboneOutput)
        assert isinstance(timm, torch.Tensor)
        torch.testing.assert_close(own.maps["token@-1:norm"].flatten(2).mT, timm[:, 1:], rtol=1e-4, atol=1e-4)


def test_operations_are_counted_by_the_shapes() -> None:
    overrides = {"embed_dim": 8, "depth": 1, "num_heads": 2}
    model = load_backbone("vit_tiny_patch16_224", weights="random", overrides=overrides)
    linear = 3 * 8 * 8 + 8 * 8 + 2 * 4 * 8 * 8
    expected = 2 * (5 * linear + 4 * 3 * 16 * 16 * 8 + 2 * 5 * 5 * 8)
    assert _forward_operations(model, 4) == expected
