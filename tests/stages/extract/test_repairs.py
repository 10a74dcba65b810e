"""Channel dropping and token smoothing through the whole extract stage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.core.errors import ConfigError
from pipeline.core.records import Frame, Packet
from stages.extract import ExtractConfig, Extractor
from stages.extract.backbone.backbone import Backbone, load_backbone
from tests.counting import Counted


def make_frames(count: int, size: int = 64) -> list[Frame]:
    rng = np.random.default_rng(0)
    return [Frame(rng.integers(0, 256, (size, size, 3), np.uint8), i, i / 25) for i in range(count)]


def make_backbone() -> Backbone:
    return load_backbone("vit_tiny_patch16_224", weights="random", overrides={"depth": 2, "img_size": 64})


def make_extractor(backbone: Backbone | None = None, **settings: Any) -> Extractor:
    fixed: dict[str, Any] = {"facets": ("token@1",), "short_side": 64, "device": "cpu", "precision": "fp32"}
    config = ExtractConfig(**{**fixed, "saliency": "first_pc", "cls": "none", "batch_size": 3, **settings})
    return Extractor(config, backbone=backbone or make_backbone())


def stack(packets: list[Packet]) -> Tensor:
    return torch.stack([packet.features.data for packet in packets if packet.features is not None])


def test_dropped_channels_are_the_loudest_of_the_whole_sample() -> None:
    frames = make_frames(20)
    plain = stack(list(make_extractor()(frames)))
    extractor = make_extractor(drop_high_variance=40)
    dropped = stack(list(extractor(frames)))
    variance = plain[:16].permute(1, 0, 2, 3).flatten(1).double().var(dim=1, unbiased=False)
    expected = sorted(variance.argsort(descending=True)[:40].tolist())
    report = extractor.report()["high_variance"]
    assert report["indices"] == expected
    assert report["sampled_frames"] == 16
    kept = [channel for channel in range(192) if channel not in expected]
    torch.testing.assert_close(dropped, plain[:, kept])


def test_indices_of_one_run_given_to_another_drop_the_same() -> None:
    frames = make_frames(5)
    first = make_extractor(drop_high_variance=10)
    estimated = stack(list(first(frames)))
    second = make_extractor(high_variance_indices=tuple(first.report()["high_variance"]["indices"]))
    stream = second(iter(frames))
    assert torch.equal(stack(list(stream)), estimated)
    assert second.report()["high_variance"]["source"] == "given"


def test_normalization_sees_the_channels_that_are_left() -> None:
    packets = list(make_extractor(drop_high_variance=50, normalize=True)(make_frames(4)))
    norms = stack(packets).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_frames_held_for_the_sample_leave_in_order_and_none_is_lost() -> None:
    source = Counted(make_frames(40))
    stream = make_extractor(drop_high_variance=5, batch_size=4)(source)
    assert next(stream).index == 0
    assert source.taken <= 20
    assert [packet.index for packet in stream] == list(range(1, 40))


def test_channels_that_do_not_exist_are_refused_before_any_frame() -> None:
    with pytest.raises(ConfigError, match="valid: 0 to 191"):
        make_extractor(drop_high_variance=192)
    with pytest.raises(ConfigError, match="no channel 500, the features have 0 to 191"):
        make_extractor(high_variance_indices=(500,))


def frames_of(planted: Any) -> list[Frame]:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (planted.backbone.mean, planted.backbone.std))
    pixels = ((planted.images * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return [Frame(np.ascontiguousarray(image), i, i / 25) for i, image in enumerate(pixels)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_smoothing_mends_planted_tokens_in_every_batch(planted: Any, precision: str) -> None:
    settings = {"facets": ("token@3",), "short_side": 224, "precision": precision}
    frames = frames_of(planted)
    before = stack(list(make_extractor(planted.backbone, **settings)(frames))).norm(dim=1)
    extractor = make_extractor(planted.backbone, repair="smooth", **settings)
    after = stack(list(extractor(frames))).norm(dim=1)
    report = extractor.report()["repair"]
    assert report["by_block"][0]["block"] == 1
    assert report["by_block"][0]["images"] == len(frames)
    for old, new in zip(before, after, strict=True):
        assert old.max() / old.median() > 50
        assert max(new[r, c] / new.median() for r, c in planted.cells) < 10


def test_without_defects_smoothing_changes_nothing() -> None:
    frames = [Frame(np.full((64, 64, 3), 90, np.uint8), 0, 0.0)]
    plain = stack(list(make_extractor()(frames)))
    extractor = make_extractor(repair="smooth")
    assert torch.equal(stack(list(extractor(frames))), plain)
    assert extractor.report()["repair"] == {"smoothed_tokens": 0, "by_block": []}
