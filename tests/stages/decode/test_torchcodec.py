"""torchcodec as the backend: PyAV's frames and times, an end at damage, frames that a card has decoded.

Where torchcodec does not load, its place is taken by :class:`StandIn`, which gives times as it does.
"""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.core.config import load_config
from pipeline.core.errors import ConfigError, MediaError
from pipeline.core.records import Frame, Packet
from pipeline.core.state import load_state, packet_state, save_state
from stages.decode import DecodeConfig, Decoder, probe, torchcodec_reader
from tests.videos import pattern, rotate_display, write_video


def _loads() -> bool:
    try:
        torchcodec_reader.require_torchcodec("cpu")
    except ConfigError:
        return False
    return True


class StandIn:
    """A decoder with torchcodec's interface, on PyAV's frames."""

    broken_from = 10**9

    def __init__(self, source: str, *, stream_index: int, device: str, **options: Any) -> None:
        path = Path(source.removeprefix("file:"))
        config = DecodeConfig(stream=stream_index)
        info = probe(path, config)
        self._start = float(info.start_pts * info.time_base)
        self._frames = list(Decoder(config, info)())

    def __len__(self) -> int:
        return len(self._frames)

    def get_frame_at(self, index: int) -> Any:
        if index >= self.broken_from:
            raise RuntimeError("no frame")
        frame = self._frames[index]
        return SimpleNamespace(
            data=torch.from_numpy(frame.image),
            pts_seconds=frame.pts_seconds + self._start,
            duration_seconds=frame.duration_seconds or 0.0,
        )


@pytest.fixture(params=["torchcodec", "stand-in"])
def decoder_class(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "stand-in":
        monkeypatch.setattr(torchcodec_reader, "_video_decoder", lambda: StandIn)
        return StandIn
    if not _loads():
        pytest.skip("torchcodec does not load here")
    return torchcodec_reader._video_decoder()


def decode(path: Path, backend: str = "torchcodec", **values: object) -> tuple[Decoder, list[Frame]]:
    config = load_config(DecodeConfig, {"backend": backend, **values})
    decoder = Decoder(config, probe(path, config))
    return decoder, list(decoder())


def sources(folder: Path) -> list[Path]:
    images = [pattern(i) for i in range(12)]
    turned = write_video(folder / "turned.mp4", images[:3], options={"crf": "10"})
    rotate_display(turned)
    times = [7, 40, 50, 200, 210, 1000]
    return [
        write_video(folder / "constant: rate.mp4", images, options={"g": "4", "bf": "2"}),
        write_video(folder / "variable.mkv", images[:6], pts=times, time_base=Fraction(1, 1000)),
        turned,
        write_video(folder / "ntsc.mp4", images, rate=30, time_base=Fraction(1001, 30000), pts=range(12)),
        write_video(folder / "gray.mkv", images[:2], codec="ffv1", pix_fmt="gray"),
    ]


def test_frames_and_times_are_those_of_pyav(decoder_class: Any, tmp_path: Path) -> None:
    for path in sources(tmp_path):
        _, wanted = decode(path, "pyav")
        decoder, found = decode(path)
        assert [(f.index, f.pts_seconds) for f in found] == [(f.index, f.pts_seconds) for f in wanted]
        tick = float(decoder.info.time_base)  # a duration is the time to the next frame, rounded to ticks
        durations = [[f.duration_seconds or 0.0 for f in frames] for frames in (found[:-1], wanted[:-1])]
        if path.stem != "variable":
            np.testing.assert_allclose(durations[0], durations[1], atol=tick + 1e-9)
        for one, other in zip(found, wanted, strict=True):
            assert one.image.shape == other.image.shape
            assert np.abs(one.image.astype(int) - other.image).max() <= 2
        assert decoder.broken is None
        assert decoder.report()["backend"] == "torchcodec"


def test_a_range_and_a_position_are_those_of_pyav(decoder_class: Any, tmp_path: Path) -> None:
    path = sources(tmp_path)[0]
    values: dict[str, object] = {"start_seconds": 0.2, "end_seconds": 0.4, "every": 2}
    found, wanted = (
        [(f.index, f.pts_seconds) for f in decode(path, b, **values)[1]] for b in ("torchcodec", "pyav")
    )
    assert found == wanted
    with pytest.raises(MediaError, match="no frames between"):
        decode(path, start_seconds=9.0)
    config = load_config(DecodeConfig, {"backend": "torchcodec"})
    first = Decoder(config, probe(path, config))
    frames = first()
    assert [next(frames).index for _ in range(5)] == [0, 1, 2, 3, 4]
    save_state(tmp_path, "decode", first.state())
    second = Decoder(config, probe(path, config))
    second.restore(load_state(tmp_path, "decode"))
    assert [frame.index for frame in second()] == list(range(5, 12))


def test_reading_ends_at_a_frame_that_cannot_be_decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torchcodec_reader, "_video_decoder", lambda: StandIn)
    monkeypatch.setattr(StandIn, "broken_from", 5)
    decoder, frames = decode(sources(tmp_path)[0])
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    assert decoder.report()["frames_missing"] == 7
    assert decoder.broken is not None
    assert "breaks off after frame 4" in decoder.broken


def test_a_file_without_times_is_refused_with_the_way_out(tmp_path: Path) -> None:
    if not _loads():
        pytest.skip("torchcodec does not load here")
    path = write_video(tmp_path / "raw.h264", [pattern(i) for i in range(3)])
    with pytest.raises(MediaError, match="use decode.backend 'pyav'"):
        decode(path)


@pytest.mark.parametrize(
    ("problem", "fix"), [(ImportError("no"), "pip install"), (RuntimeError("no"), "torch 2.13")]
)
def test_where_it_does_not_load_the_error_says_what_to_do(
    problem: Exception, fix: str, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise problem

    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", Broken("torchcodec.decoders"))
    with pytest.raises(ConfigError, match=fix):
        decode(clip)


def test_a_card_that_is_not_there_and_a_backend_without_cards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="needs backend torchcodec"):
        load_config(DecodeConfig, {"device": "cuda"})
    monkeypatch.setattr(torchcodec_reader, "_video_decoder", lambda: StandIn)
    with pytest.raises(ConfigError, match="CUDA devices here"):
        torchcodec_reader.require_torchcodec("cuda:63")


def test_the_image_on_the_card_is_no_part_of_the_state() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    frame = Frame(image, 0, 0.0, on_device=torch.zeros(4, 6, 3, dtype=torch.uint8))
    assert packet_state(Packet(frame))["frame"]["on_device"] is None
