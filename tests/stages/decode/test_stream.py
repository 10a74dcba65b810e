from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.errors import ConfigError, MediaError
from pipeline.core.records import Frame
from stages.decode import DecodeConfig, LiveConfig, StreamDecoder, connection, stream_address, stream_input
from tests.videos import pattern, write_video

NUM_FRAMES = 30
QUICK = {"analyzeduration": "100000", "fpsprobesize": "0"}
"""So that opening does not wait for more than is in the first half of the stream."""


@pytest.fixture(scope="module")
def transport_stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stream") / "square.ts"
    return write_video(path, [pattern(index) for index in range(NUM_FRAMES)], options={"g": "10", "bf": "0"})


def open_stream(
    source: Path, *, live: bool, notice: Callable[[str], Any] = lambda line: None, **settings: Any
) -> StreamDecoder:
    address = stream_address(source, live=live)
    assert address is not None
    decode = {name: settings.pop(name) for name in ("every", "end_seconds") if name in settings}
    config = DecodeConfig(live=LiveConfig(enabled=live, options=QUICK, **settings), **decode)
    return StreamDecoder(config, address, notice)


def assert_every_frame_is_accounted_for(report: dict[str, Any], frames: list[Frame]) -> None:
    assert report["processed"] == len(frames)
    assert report["received"] == report["processed"] + report["dropped"]
    assert report["dropped"] == sum(report[key] for key in ("newer", "too_old", "before_start", "at_end"))


@contextmanager
def feeding(pipe: Path, content: bytes, *, pause_after: int | None = None) -> Iterator[threading.Event]:
    """Write into a named pipe from another thread; where asked, wait in the middle until the event is set."""
    go_on = threading.Event()

    def feed() -> None:
        try:
            with pipe.open("wb", buffering=0) as file:
                file.write(content[:pause_after])
                if pause_after is not None:
                    go_on.wait(10)
                    file.write(content[pause_after:])
        except BrokenPipeError:
            pass

    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    try:
        yield go_on
    finally:
        go_on.set()
        thread.join(10)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "camera.ts"
    os.mkfifo(path)
    return path


def test_without_live_every_frame_of_a_pipe_is_processed_however_slow_the_stages_are(
    pipe: Path, transport_stream: Path
) -> None:
    with feeding(pipe, transport_stream.read_bytes()):
        decoder = open_stream(pipe, live=False)
        frames = []
        for frame in decoder():
            time.sleep(0.005)
            frames.append(frame)
    report = decoder.report()
    assert [frame.index for frame in frames] == list(range(NUM_FRAMES))
    assert [frame.pts_seconds for frame in frames] == pytest.approx([i / 25 for i in range(NUM_FRAMES)])
    assert report["dropped"] == 0
    assert_every_frame_is_accounted_for(report, frames)
    assert decoder.broken is None
    # The square is where the pattern has it: the pixels are those of the frame.
    difference = np.abs(frames[7].image.astype(int) - pattern(7).astype(int)).mean()
    assert difference < 6


def test_live_the_newest_frame_wins_and_the_rest_is_counted(pipe: Path, transport_stream: Path) -> None:
    with feeding(pipe, transport_stream.read_bytes()):
        decoder = open_stream(pipe, live=True)
        frames = []
        for frame in decoder():
            frames.append(frame)
            time.sleep(0.25)
            decoder.finished(frame.index)
    report = decoder.report()
    assert 3 <= len(frames) <= 8
    assert frames[0].index == 0
    assert all(later.index > earlier.index for earlier, later in itertools.pairwise(frames))
    # Played at its own rate, a frame every 40 ms: the times of the frames taken are those of the clock.
    assert frames[-1].pts_seconds == pytest.approx(frames[-1].index / 25)
    assert report["newer"] > 0
    assert_every_frame_is_accounted_for(report, frames)


def test_a_frame_that_waited_too_long_for_room_is_dropped(pipe: Path, transport_stream: Path) -> None:
    content = transport_stream.read_bytes()
    with feeding(pipe, content, pause_after=len(content) // 2) as go_on:
        decoder = open_stream(pipe, live=True, max_latency_seconds=0.3)
        stream = decoder()
        first, second = next(stream), next(stream)
        # Two frames are under way, so the third waits in the slot; the input stalls, and it becomes too old.
        for frame in (first, second):
            threading.Timer(1.1, decoder.finished, [frame.index]).start()
        threading.Timer(1.2, go_on.set).start()
        rest = [frame for frame in _finishing(decoder, stream)]
    report = decoder.report()
    assert report["too_old"] >= 1
    assert_every_frame_is_accounted_for(report, [first, second, *rest])


def _finishing(decoder: StreamDecoder, stream: Iterator[Frame]) -> Iterator[Frame]:
    for frame in stream:
        yield frame
        decoder.finished(frame.index)


def test_a_pipe_that_is_closed_ends_the_stream(pipe: Path, transport_stream: Path) -> None:
    content = transport_stream.read_bytes()
    with feeding(pipe, content[: len(content) // 2]):
        decoder = open_stream(pipe, live=False)
        frames = list(decoder())
    assert 5 < len(frames) < NUM_FRAMES
    assert decoder.broken is None
    assert_every_frame_is_accounted_for(decoder.report(), frames)


def test_a_pipe_that_goes_silent_can_be_left(pipe: Path, transport_stream: Path) -> None:
    content = transport_stream.read_bytes()
    stop = threading.Event()
    with feeding(pipe, content, pause_after=len(content) // 2):
        decoder = open_stream(pipe, live=True)
        decoder.stop_when(stop.is_set)
        threading.Timer(0.4, stop.set).start()
        started = time.monotonic()
        frames = list(_finishing(decoder, decoder()))
        assert time.monotonic() - started < 3
        assert decoder._input._reader.ended_within(3)
    assert_every_frame_is_accounted_for(decoder.report(), frames)


def test_a_silent_input_is_spoken_of(pipe: Path, transport_stream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_input, "_SILENCE_SECONDS", 0.3)
    content = transport_stream.read_bytes()
    lines: list[str] = []
    with feeding(pipe, content, pause_after=len(content) // 2) as go_on:
        decoder = open_stream(pipe, live=True, notice=lines.append)
        threading.Timer(0.8, go_on.set).start()
        list(_finishing(decoder, decoder()))
    assert any("no frame for" in line and line.startswith(str(pipe)) for line in lines)


def test_a_file_is_read_at_its_own_rate_as_if_it_were_a_camera(transport_stream: Path) -> None:
    started = time.monotonic()
    decoder = open_stream(transport_stream, live=True)
    frames = list(_finishing(decoder, decoder()))
    assert time.monotonic() - started == pytest.approx(NUM_FRAMES / 25, abs=0.5)
    assert_every_frame_is_accounted_for(decoder.report(), frames)


def test_a_camera_is_opened_as_a_device(transport_stream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device is opened with the input of the platform's cameras; here FFmpeg's virtual one stands for it."""
    monkeypatch.setattr(connection, "CAMERA_FORMATS", {"linux": "lavfi"})
    address = stream_address("/dev/null")
    assert address is not None
    graph = f"movie={transport_stream},realtime"
    camera = type(address)(graph, "camera", "/dev/video0", "video0")
    decoder = StreamDecoder(DecodeConfig(live=LiveConfig(enabled=True, reconnect=0)), camera)
    frames = list(_finishing(decoder, decoder()))
    assert decoder.info.image_hw == (48, 64)
    assert len(frames) > 5
    assert_every_frame_is_accounted_for(decoder.report(), frames)


@pytest.mark.parametrize("live", [False, True])
def test_every_third_frame_and_an_end(pipe: Path, transport_stream: Path, live: bool) -> None:
    with feeding(pipe, transport_stream.read_bytes()):
        decoder = open_stream(pipe, live=live, every=3, end_seconds=0.6)
        frames = list(_finishing(decoder, decoder()))
    assert frames[0].index == 0
    assert all(frame.index % 3 == 0 for frame in frames)
    assert frames[-1].pts_seconds < 0.6
    assert_every_frame_is_accounted_for(decoder.report(), frames)


def test_the_first_frame_can_be_seen_ahead_and_comes_once(pipe: Path, transport_stream: Path) -> None:
    with feeding(pipe, transport_stream.read_bytes()):
        decoder = open_stream(pipe, live=False)
        first = decoder.first_frame()
        frames = list(decoder())
    assert frames[0] is first
    assert [frame.index for frame in frames] == list(range(NUM_FRAMES))


def test_what_is_no_video_is_an_error_before_the_first_frame(pipe: Path) -> None:
    with feeding(pipe, b"not a video" * 1000), pytest.raises(MediaError, match=r"camera\.ts: cannot be opened"):
        open_stream(pipe, live=False)


def test_a_device_that_is_no_camera_is_an_error() -> None:
    with pytest.raises(MediaError, match="/dev/null: cannot be opened"):
        open_stream(Path("/dev/null"), live=True)


def test_a_stream_has_no_earlier_times(pipe: Path) -> None:
    address = stream_address(pipe)
    assert address is not None
    with pytest.raises(ConfigError, match="a stream has no earlier times"):
        StreamDecoder(DecodeConfig(start_seconds=2.0), address)
