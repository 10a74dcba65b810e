"""The extract stage: order, batches, sizes, options, and memory that runs out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.core.config import load_config
from pipeline.core.errors import ConfigError, WeightsError
from pipeline.core.records import Features, Frame, Packet
from stages.extract import ExtractConfig, Extractor
from stages.extract.backbone.backbone import Backbone, load_backbone
from stages.extract.backbone.facets import parse_facet
from stages.extract.log_binning import log_bin

BASE: dict[str, Any] = {
    "short_side": 32,
    "facets": ["key@1"],
    "batch_size": 4,
    "device": "cpu",
    "precision": "fp32",
}


def tiny(**arguments: Any) -> Backbone:
    small = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    return load_backbone("vit_tiny_patch16_224", weights="random", overrides=small, **arguments)


def frames(count: int, size: tuple[int, int] = (40, 60)) -> list[Frame]:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    return [Frame(image, index, index / 25) for index, image in enumerate(images)]


def run(source: list[Frame], backbone: Backbone | None = None, **settings: Any) -> tuple[Extractor, list[Packet]]:
    extractor = Extractor(load_config(ExtractConfig, BASE | settings), backbone=backbone or tiny())
    return extractor, list(extractor(source))


def features_of(packet: Packet) -> Features:
    assert packet.features is not None
    return packet.features


@pytest.mark.parametrize("count", [0, 1, 3, 4, 9])
def test_every_frame_comes_out_in_order(count: int) -> None:
    _, packets = run(frames(count))
    assert [packet.index for packet in packets] == list(range(count))
    assert all(features_of(packet).data.shape == (48, 2, 3) for packet in packets)


def test_a_batch_changes_nothing() -> None:
    source = frames(5)
    _, single = run(source, batch_size=1)
    _, batched = run(source, batch_size=4)
    for one, other in zip(single, batched, strict=True):
        torch.testing.assert_close(features_of(one).data, features_of(other).data, rtol=1e-4, atol=1e-5)


def test_at_most_one_batch_is_taken_ahead() -> None:
    taken = []

    def source() -> Any:
        for frame in frames(9):
            taken.append(frame.index)
            yield frame

    packets = Extractor(load_config(ExtractConfig, BASE), backbone=tiny())(source())
    next(packets)
    assert taken == [0, 1, 2, 3]


def test_values_are_those_of_the_backbone_on_the_normalized_image() -> None:
    source = frames(1, (32, 48))  # the model's own size: no resizing
    backbone = tiny()
    _, (packet,) = run(source, backbone, facets=["key@1", "token@1:norm"], saliency="cls_attention", cls="facet")
    pixels = torch.from_numpy(source[0].image).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
    asked = [parse_facet("key@1"), parse_facet("token@1:norm")]
    expected = backbone((pixels - mean) / std, asked, saliency=True, cls="facet")
    found = features_of(packet)
    torch.testing.assert_close(found.data, expected.maps["key@1"][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.extra["token@1:norm"], expected.maps["token@1:norm"][0], rtol=1e-4, atol=1e-5)
    assert expected.saliency is not None
    assert expected.cls is not None
    torch.testing.assert_close(found.saliency, expected.saliency[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.cls, expected.cls[0], rtol=1e-4, atol=1e-5)


class Forgetful:
    """A backbone's forward that runs out of memory for more than ``limit`` images."""

    def __init__(self, backbone: Backbone, limit: int) -> None:
        self.limit, self.sizes, self._forward = limit, list[int](), backbone.forward
        backbone.forward = self  # type: ignore[method-assign]

    def __call__(self, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.sizes.append(len(images))
        if len(images) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        return self._forward(images, *args, **kwargs)


def test_a_batch_that_does_not_fit_is_halved_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.extract.parts.PART", 16)  # as on a card: the batch as a whole
    backbone = tiny()
    memory = Forgetful(backbone, limit=2)
    extractor, packets = run(frames(9), backbone, batch_size=8)
    assert [packet.index for packet in packets] == list(range(9))
    assert extractor.batch_size == 2
    assert extractor.report()["batch_size"] == 2
    assert memory.sizes == [8, 4, 2, 2, 4, 2, 2, 1]
    assert [w for w in extractor.warnings if "going on with" in w] == extractor.warnings
    assert len(extractor.warnings) == 2


def test_a_single_frame_that_does_not_fit_is_an_error() -> None:
    backbone = tiny()
    Forgetful(backbone, limit=0)
    with pytest.raises(torch.OutOfMemoryError):
        run(frames(3), backbone)


def test_frames_of_another_size_get_a_grid_of_their_own() -> None:
    _, packets = run([*frames(2), *(Frame(f.image, 5 + f.index, 1.0) for f in frames(2, (60, 40)))])
    assert [features_of(p).grid.grid_hw for p in packets] == [(2, 3), (2, 3), (3, 2), (3, 2)]


@pytest.mark.parametrize("cue", ["first_pc", "ncut", "cls_attention", "auto"])
def test_saliency_is_in_range_on_the_grid(cue: str) -> None:
    extractor, packets = run(frames(5), saliency=cue, short_side=64)
    saliency = features_of(packets[4]).saliency
    assert saliency is not None
    assert saliency.shape == (4, 6)
    assert 0 <= saliency.min() <= saliency.max() <= 1
    assert extractor.report()["saliency"] == ("ncut" if cue == "auto" else cue)
    assert features_of(packets[0]).extra == {}


def test_saliency_and_cls_can_be_left_out() -> None:
    _, (packet,) = run(frames(1), saliency="none", cls="none")
    assert features_of(packet).saliency is None
    assert features_of(packet).cls is None


def test_normalized_features_have_length_one() -> None:
    _, (packet,) = run(frames(1), normalize=True, facets=["key@1", "token@0"])
    for values in (features_of(packet).data, features_of(packet).extra["token@0"]):
        torch.testing.assert_close(values.norm(dim=0), torch.ones(2, 3))


def test_log_bins_are_added_after_the_backbone() -> None:
    _, (plain,) = run(frames(1))
    _, (binned,) = run(frames(1), log_bins=2)
    torch.testing.assert_close(features_of(binned).data, log_bin(features_of(plain).data))


def test_a_stride_makes_the_grid_finer() -> None:
    _, (packet,) = run(frames(1), tiny(stride_px=8))
    assert features_of(packet).grid.grid_hw == (3, 5)
    assert features_of(packet).grid.offset_px == pytest.approx((8 * 40 / 32, 8 * 60 / 48))


def test_explicit_size_and_deviation_reach_the_model() -> None:
    _, (square,) = run(frames(1), input_hw=[64, 64])
    assert features_of(square).grid.grid_hw == (4, 4)
    _, (plain,) = run(frames(1))
    _, (other,) = run(frames(1), std_r=0.25)
    assert not torch.allclose(features_of(plain).data, features_of(other).data)


def test_high_variance_channels_are_dropped_and_reported() -> None:
    extractor, packets = run(frames(6), drop_high_variance=8, facets=["token@1:norm"])
    assert all(features_of(packet).data.shape[0] == 40 for packet in packets)
    assert len(extractor.report()["high_variance"]["indices"]) == 8


def test_smoothing_leaves_healthy_features_alone() -> None:
    source = frames(2)
    _, plain = run(source)
    extractor, smoothed = run(source, repair="smooth")
    assert extractor.report()["repair"]["smoothed_tokens"] == 0
    torch.testing.assert_close(features_of(plain[1]).data, features_of(smoothed[1]).data)


def test_half_precision_keeps_the_direction_of_features(clip: Any) -> None:
    from itertools import islice

    from stages.decode import DecodeConfig, Decoder, probe

    config = DecodeConfig()
    source = list(islice(Decoder(config, probe(clip, config))(), 2))
    settings = BASE | {"facets": ["key@11", "token@-1:norm"], "short_side": 140}
    results = {}
    for precision in ("fp32", "bf16", "fp16"):
        extractor = Extractor(load_config(ExtractConfig, settings | {"precision": precision}))
        results[precision] = [features_of(packet) for packet in extractor(source)]
    for precision in ("bf16", "fp16"):
        for exact, rounded in zip(results["fp32"], results[precision], strict=True):
            for one, other in (
                (exact.data, rounded.data),
                *zip(exact.extra.values(), rounded.extra.values(), strict=True),
            ):
                assert torch.cosine_similarity(one, other, dim=0).mean() > 0.999


def test_the_report_is_json_ready() -> None:
    import json

    extractor, _ = run(frames(2))
    facts = json.loads(json.dumps(extractor.report()))
    assert facts["input_hw"] == [32, 48]
    assert facts["grid_hw"] == [2, 3]
    assert facts["frames"] == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"facets": ["keys@1"]}, "valid: query, key, value, token"),
        ({"facets": []}, "at least one facet"),
        ({"facets": ["key@2"]}, "valid: 0 to 1"),
        ({"short_side": 15}, "at least 16"),
        ({"device": "gpu0"}, "valid: auto, cpu, cuda"),
        ({"device": "cuda:99"}, "CUDA devices here"),
        ({"resize": "nearest"}, "resize"),
        ({"batch_size": 0}, "batch_size"),
        ({"std_r": 0}, "std_r"),
        ({"input_hw": [14, 16]}, "at least 16 px per side"),
        ({"input_hw": [1600, 3200]}, "more than extract.max_cells"),
        ({"max_cells": 0}, "max_cells"),
    ],
)
def test_bad_settings_say_what_is_valid(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(frames(1), **settings)


def test_a_lift_for_another_backbone_is_refused(tmp_path: Any) -> None:
    with pytest.raises(WeightsError, match="absent"):
        run(frames(1), lift=str(tmp_path / "absent.safetensors"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_what_the_cpu_gives() -> None:
    source = frames(9)
    _, expected = run(source, saliency="cls_attention")
    _, exact = run(source, saliency="cls_attention", device="cuda", precision="fp32", batch_size=2)
    _, half = run(source, saliency="cls_attention", device="cuda", precision="bf16", batch_size=2)
    for one, other, rounded in zip(expected, exact, half, strict=True):
        data = features_of(one).data
        # Reductions run in another order on the device.
        torch.testing.assert_close(data, features_of(other).data.cpu(), rtol=1e-3, atol=1e-3)
        assert torch.cosine_similarity(data, features_of(rounded).data.cpu(), dim=0).mean() > 0.999
