"""Exact starts and resumed decoding in every container, and what is unusual in a video without being damage."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.bench.fuzz import numbered_frame, shown_index
from pipeline.core.config import load_config
from pipeline.core.errors import ConfigError, MediaError
from pipeline.core.records import Frame
from pipeline.core.state import load_state, save_state
from stages.decode import DecodeConfig, Decoder, probe
from tests.videos import write_video

NUM_FRAMES = 60


@dataclass(frozen=True)
class Encoding:
    name: str
    codec: str
    options: dict[str, str] = field(default_factory=dict)
    pix_fmt: str = "yuv420p"


ENCODINGS = (
    Encoding("b_frames.mp4", "libx264", {"g": "24", "bf": "3"}),
    Encoding("open_gop.mp4", "libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0"}),
    Encoding("intra_refresh.mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}),
    Encoding("fragmented.mp4", "libx264", {"g": "12"}),
    Encoding("b_frames.mkv", "libx264", {"g": "24", "bf": "3"}),
    Encoding("h264.ts", "libx264", {"g": "12", "bf": "2"}),
    Encoding("open_gop.ts", "libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0"}),
    Encoding("mpeg2.ts", "mpeg2video", {"g": "12", "bf": "2"}),
    Encoding("h264.m2ts", "libx264", {"g": "12", "bf": "2"}),
    Encoding("mpeg2.mpg", "mpeg2video", {"g": "12", "bf": "2"}),
    Encoding("mpeg1.mpg", "mpeg1video", {"g": "12", "qmin": "2", "qmax": "2"}),
    Encoding("hevc.mp4", "libx265", {"x265-params": "log-level=none:keyint=12:bframes=3"}),
    Encoding("raw.h264", "libx264", {"g": "12", "bf": "0"}),
    Encoding("raw.hevc", "libx265", {"x265-params": "log-level=none:keyint=12"}),
    Encoding("mpeg4.avi", "mpeg4", {"g": "12", "bf": "2"}),
    Encoding("mjpeg.avi", "mjpeg", {}, "yuvj420p"),
    Encoding("h264.flv", "libx264", {"g": "12", "bf": "2"}),
    Encoding("vp8.webm", "libvpx", {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16", "arnr-maxframes": "7"}),
    Encoding("vp8.ogg", "libvpx", {"g": "12"}),
    Encoding("vp9.webm", "libvpx-vp9", {"g": "12", "deadline": "realtime", "cpu-used": "8"}),
)


@pytest.fixture(scope="module", params=ENCODINGS, ids=lambda encoding: encoding.name)
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoding: Encoding = request.param
    path = tmp_path_factory.mktemp("videos") / encoding.name
    fragmented = {"movflags": "frag_keyframe+empty_moov"} if path.stem == "fragmented" else {}
    return write_video(
        path,
        [numbered_frame(index) for index in range(NUM_FRAMES)],
        codec=encoding.codec,
        pix_fmt=encoding.pix_fmt,
        options=encoding.options,
        container_options=fragmented,
    )


def decode(path: Path, **values: object) -> tuple[Decoder, list[Frame]]:
    config = load_config(DecodeConfig, values)
    decoder = Decoder(config, probe(path, config))
    return decoder, list(decoder())


def assert_same(got: list[Frame], expected: list[Frame]) -> None:
    assert [(frame.index, frame.pts_seconds) for frame in got] == [(f.index, f.pts_seconds) for f in expected]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(got, expected, strict=True))


def test_a_whole_video_has_all_frames_and_no_damage(video: Path) -> None:
    decoder, frames = decode(video)
    assert [frame.index for frame in frames] == list(range(NUM_FRAMES))
    assert [shown_index(frame.image) for frame in frames] == list(range(NUM_FRAMES))
    # FFmpeg's times for MPEG program streams are a frame off where several pictures share a packet.
    tolerance = 0.041 if video.suffix == ".mpg" else 2e-3
    np.testing.assert_allclose([frame.pts_seconds for frame in frames], np.arange(NUM_FRAMES) / 25, atol=tolerance)
    assert (decoder.damage, decoder.broken) == (None, None)
    assert not decoder.warnings or video.name == "mpeg1.mpg"


@pytest.mark.parametrize("start", [0.02, 0.5, 1.3, 2.36])
def test_a_start_is_exact(video: Path, start: float) -> None:
    _, whole = decode(video)
    decoder, frames = decode(video, start_seconds=start)
    assert_same(frames, [frame for frame in whole if frame.pts_seconds >= start - 1e-9])
    assert decoder.first_index() == frames[0].index
    assert decoder.damage is None


@pytest.mark.parametrize("count", [1, 13, 30, 59])
def test_a_restored_decoder_goes_on_bit_for_bit(video: Path, tmp_path: Path, count: int) -> None:
    _, whole = decode(video)
    config = DecodeConfig()
    info = probe(video, config)
    first = Decoder(config, info)
    stream = first()
    before = [next(stream) for _ in range(count)]
    save_state(tmp_path, "decode", first.state())
    stream.close()  # type: ignore[attr-defined]
    second = Decoder(config, info)
    second.restore(load_state(tmp_path, "decode"))
    assert second.current_index == count - 1
    assert_same([*before, *second()], whole)
    assert second.damage is None


def test_a_closed_decoder_goes_on_where_it_was(video: Path) -> None:
    _, whole = decode(video)
    decoder = Decoder(DecodeConfig(), probe(video, DecodeConfig()))
    stream = decoder()
    before = [next(stream) for _ in range(20)]
    stream.close()  # type: ignore[attr-defined]
    assert_same([*before, *decoder()], whole)


def test_a_start_after_the_end_is_an_error(video: Path) -> None:
    with pytest.raises(MediaError, match="no frames between"):
        decode(video, start_seconds=100.0)


def test_a_trimmed_file_counts_no_discarded_packets(shared_dir: Path) -> None:
    decoder, frames = decode(shared_dir / "data" / "nasty" / "discard_first_keyframe.mp4")
    assert [frame.index for frame in frames] == list(range(25))
    assert decoder.info.num_frames == 25
    assert (frames[0].pts_seconds, decoder.damage) == (0.0, None)
    later, rest = decode(shared_dir / "data" / "nasty" / "discard_first_keyframe.mp4", start_seconds=0.5)
    assert_same(rest, frames[13:])
    assert later.first_index() == 13


@pytest.mark.parametrize(
    "name",
    [
        "animated.gif", "bt2020_10bit.mp4", "h265_10bits.mp4", "nasa_13013.mp4", "nasa_13013_rotated.mp4",
        "test_non_zero_start.mp4", "testsrc2_12bit_hdr.mp4", "testsrc2_444_10bit_hevc.mp4",
        "testsrc2_av1_10bit.mp4", "testsrc2_odd_height_and_width_mpeg2.mp4",
        "testsrc2_odd_width_vp9.mp4",
    ],
)  # fmt: skip
def test_odd_but_valid_files_are_whole(shared_dir: Path, name: str) -> None:
    decoder, frames = decode(shared_dir / "data" / "nasty" / name)
    assert decoder.damage is None
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert frames[0].pts_seconds == 0.0


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_a_video_may_start_late_and_end_with_a_long_frame(tmp_path: Path, suffix: str) -> None:
    images = [numbered_frame(index) for index in range(30)]
    late = write_video(
        tmp_path / f"late.{suffix}",
        images,
        pts=[5000 + 40 * index for index in range(30)],
        time_base=Fraction(1, 1000),
    )
    decoder, frames = decode(late)
    assert (len(frames), decoder.damage) == (30, None)
    path = tmp_path / f"long.{suffix}"
    _write_with_long_last_frame(path, images)
    decoder, frames = decode(path)
    assert (len(frames), decoder.damage) == (30, None)
    if suffix == "mp4":
        assert frames[-1].duration_seconds == pytest.approx(2.0)


def _write_with_long_last_frame(path: Path, images: list[np.ndarray]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0", "tune": "zerolatency"})
        stream.height, stream.width, stream.pix_fmt = images[0].shape[0], images[0].shape[1], "yuv420p"
        packets = []
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = index
            packets += stream.encode(frame)
        packets += stream.encode(None)
        packets[-1].duration = round(2 / packets[-1].time_base)
        container.mux(packets)


def test_a_variable_frame_rate_is_not_damage(tmp_path: Path) -> None:
    times = [0, 40, 80, 120, 160, 200, 240, 280, 320, 360, 400, 3000, 3040, 3080, 9000]
    path = write_video(
        tmp_path / "pauses.mkv", [numbered_frame(i) for i in range(15)], pts=times, time_base=Fraction(1, 1000)
    )
    decoder, frames = decode(path)
    assert [frame.index for frame in frames] == list(range(15))
    assert decoder.damage is None


def test_a_name_with_a_colon_is_a_file(video: Path, tmp_path: Path) -> None:
    path = tmp_path / "http:clip%03d.mp4"
    path.write_bytes(video.read_bytes())
    assert len(decode(path)[1]) == NUM_FRAMES


def test_a_playlist_opens_no_other_protocol(tmp_path: Path) -> None:
    path = tmp_path / "list.m3u8"
    path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(MediaError):
        probe(path, DecodeConfig())


@pytest.mark.timeout(10)
def test_pipes_devices_and_sockets_are_errors_not_hangs(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe.mp4"
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.mp4"))
        for path in (fifo, tmp_path / "socket.mp4", Path("/dev/zero")):
            with pytest.raises(MediaError, match="not a regular file"):
                probe(path, DecodeConfig())


def test_metadata_in_an_unknown_encoding_is_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", [numbered_frame(i) for i in range(3)])
    content = path.read_bytes()
    at = content.index(b"Lavf")
    path.write_bytes(content[:at] + b"\xff\xfe\x80\xe9" + content[at + 4 :])
    assert len(decode(path)[1]) == 3


def test_the_best_video_stream_is_read_unless_another_is_named(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for stream, size in zip(streams, (32, 64), strict=True):
            stream.height, stream.width, stream.pix_fmt = size, size, "yuv420p"
        for index in range(5):
            for stream in streams:
                image = np.full((stream.height, stream.width, 3), 40 * index, np.uint8)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts = index
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        best = container.streams.best("video").index
    assert probe(path, DecodeConfig()).stream_index == best
    decoder, frames = decode(path, stream=1 - best)
    assert len(frames) == 5
    assert decoder.info.image_hw != probe(path, DecodeConfig()).image_hw
    with pytest.raises(MediaError, match=r"decode\.stream can be 0, 1"):
        probe(path, DecodeConfig(stream=7))


@pytest.mark.parametrize("values", [{"start_seconds": 1e300}, {"image_frame_rate": 1e-300}, {"every": 10**30}])
def test_values_out_of_all_bounds_are_config_errors(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        load_config(DecodeConfig, values)
