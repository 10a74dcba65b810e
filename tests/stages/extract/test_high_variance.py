from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.core.errors import ConfigError
from pipeline.core.grid import PatchGrid
from pipeline.core.records import Features, Frame, Packet
from stages.extract.high_variance import ChannelVariance, HighVarianceFilter, highest_variance, kept_channels
from tests.counting import Counted

GRID = PatchGrid((28, 42), (2, 3), (14.0, 14.0), (7.0, 7.0))


def make_packets(count: int, channels: int = 6, loud: tuple[int, ...] = (1, 4)) -> list[Packet]:
    generator = torch.Generator().manual_seed(3)
    packets = []
    for index in range(count):
        data = torch.randn(channels, 2, 3, generator=generator)
        data[list(loud)] *= 50
        features = Features(data=data, grid=GRID, extra={"token@11": data.clone()})
        packets.append(Packet(Frame(np.zeros((28, 42, 3), np.uint8), index, index / 25), features))
    return packets


def data_of(packet: Packet) -> Tensor:
    assert packet.features is not None
    return packet.features.data


def test_streamed_variance_equals_that_of_all_patches_at_once() -> None:
    maps = [torch.randn(5, h, 7, generator=torch.Generator().manual_seed(h)) * 3 + 100 for h in (1, 4, 9)]
    variance = ChannelVariance()
    for features in maps:
        variance.update(features)
    everything = torch.cat([m.flatten(1) for m in maps], dim=1).double().numpy()
    np.testing.assert_allclose(variance.value().numpy(), everything.var(axis=1), rtol=1e-12)
    assert variance.count == everything.shape[1]


def test_variance_survives_a_large_offset() -> None:
    variance = ChannelVariance()
    for _ in range(10):
        variance.update(torch.tensor([[1e7, 1e7 + 1]]))
    assert variance.value().item() == pytest.approx(0.25)


def test_variance_refuses_other_channels_and_emptiness() -> None:
    variance = ChannelVariance()
    with pytest.raises(ValueError, match="no features"):
        variance.value()
    variance.update(torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match="4 channels after 3"):
        variance.update(torch.zeros(4, 2, 2))


def test_ties_go_to_the_lower_index_and_the_rest_keeps_its_order() -> None:
    assert highest_variance(torch.tensor([2.0, 5.0, 5.0, 5.0]), 2) == [1, 2]
    assert kept_channels(5, [3, 0]).tolist() == [1, 2, 4]


def test_the_loudest_channels_of_the_sample_are_dropped_from_every_packet() -> None:
    packets = make_packets(7)
    channels = HighVarianceFilter(2, sample_frames=3)
    results = list(channels(packets))
    assert [p.index for p in results] == list(range(7))
    assert channels.indices == [1, 4]
    for before, after in zip(packets, results, strict=True):
        assert torch.equal(data_of(after), data_of(before)[[0, 2, 3, 5]])
        assert after.features is not None
        assert after.features.extra["token@11"].shape[0] == 6
    report = channels.report()
    assert report["source"] == "estimated"
    assert report["sampled_frames"] == 3
    assert report["indices"] == [1, 4]
    assert report["variance_share"] > 0.99


def test_at_most_the_sample_is_held_back() -> None:
    source = Counted(make_packets(9))
    stream = HighVarianceFilter(1, sample_frames=4)(source)
    next(stream)
    assert source.taken == 4
    list(stream)
    assert source.taken == 9


def test_a_video_shorter_than_the_sample_loses_no_frame() -> None:
    channels = HighVarianceFilter(2, sample_frames=16)
    assert [data_of(p).shape[0] for p in channels(make_packets(2))] == [4, 4]
    assert list(HighVarianceFilter(2)([])) == []


def test_given_indices_need_no_sample() -> None:
    channels = HighVarianceFilter(0, indices=[5, 0])
    stream = channels(iter(make_packets(2)))
    assert data_of(next(stream)).shape[0] == 4
    assert channels.report() == {
        "dropped": 2,
        "source": "given",
        "sampled_frames": 0,
        "variance_share": None,
        "indices": [0, 5],
    }


def test_dropping_nothing_passes_packets_on_as_they_are() -> None:
    packets = make_packets(2)
    assert [a is b for a, b in zip(HighVarianceFilter(0)(packets), packets, strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"drop": -1}, "must not be negative"),
        ({"drop": 1, "sample_frames": 0}, "at least 1 frame"),
        ({"drop": 0, "indices": [1, 1]}, "twice"),
        ({"drop": 3, "indices": [1]}, "give one of them"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HighVarianceFilter(**arguments)  # type: ignore[arg-type]


def test_more_channels_than_there_are_is_an_error_with_the_valid_range() -> None:
    with pytest.raises(ConfigError, match="valid: 0 to 5"):
        list(HighVarianceFilter(6)(make_packets(1)))
    with pytest.raises(ConfigError, match="no channel 6, the features have 0 to 5"):
        list(HighVarianceFilter(0, indices=[6])(make_packets(1)))


def test_what_cannot_be_dropped_is_known_before_the_first_frame() -> None:
    with pytest.raises(ConfigError, match="valid: 0 to 5"):
        HighVarianceFilter(6, channels=6)
    with pytest.raises(ConfigError, match="no channel 9"):
        HighVarianceFilter(0, indices=[9], channels=6)
    HighVarianceFilter(5, channels=6)
