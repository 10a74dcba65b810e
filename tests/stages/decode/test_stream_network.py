from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import av.error
import pytest

from pipeline.core.errors import MediaError
from stages.decode import DecodeConfig, LiveConfig, StreamDecoder, stream_address
from tests.conftest import REPOSITORY
from tests.hls_server import LivePlaylist, Mode, live_playlist

SYSTEM_PYTHON = "/usr/bin/python3"
PROBE = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst, GstRtspServer; \
Gst.init(None); assert Gst.ElementFactory.find('rtpvp8pay') and Gst.ElementFactory.find('vp8enc')"


def open_stream(address: str, notice: Callable[[str], Any], **settings: Any) -> StreamDecoder:
    found = stream_address(address)
    assert found is not None
    limits = {"open_timeout_seconds": 5.0, "stall_seconds": 0.8, **settings}
    return StreamDecoder(DecodeConfig(live=LiveConfig(**limits)), found, notice)


def assert_every_frame_is_accounted_for(decoder: StreamDecoder, processed: int) -> None:
    report = decoder.report()
    assert report["processed"] == processed
    assert report["received"] == report["processed"] + report["dropped"]


@pytest.fixture(scope="module")
def playlist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePlaylist]:
    with live_playlist(tmp_path_factory.mktemp("hls")) as server:
        yield server


@pytest.fixture
def restarted(playlist: LivePlaylist) -> LivePlaylist:
    playlist.mode, playlist.started = "serve", time.monotonic()
    return playlist


@pytest.mark.parametrize("fault", ["stall", "404", pytest.param("reset", marks=pytest.mark.long)])
def test_a_playlist_that_fails_is_opened_again_and_the_gap_recorded(restarted: LivePlaylist, fault: Mode) -> None:
    lines: list[str] = []

    def notice(line: str) -> None:
        lines.append(line)
        restarted.mode = "serve"

    decoder = open_stream(restarted.address, notice, enabled=True)
    processed, times = 0, []
    for frame in decoder():
        times.append(frame.pts_seconds)
        processed += 1
        decoder.finished(frame.index)
        if processed == 10:
            restarted.mode = fault
        if any("frames again" in line for line in lines):
            decoder.close()
    report = decoder.report()
    assert report["num_outages"] >= 1
    assert report["outages"][0]["attempts"] >= 1
    assert any("opening it again in 0.5 s (1 of 10)" in line for line in lines)
    assert any("frames again after" in line for line in lines)
    assert all(later > earlier for earlier, later in itertools.pairwise(times))
    assert_every_frame_is_accounted_for(decoder, processed)


def test_a_playlist_that_is_finished_ends_the_stream(restarted: LivePlaylist) -> None:
    restarted.mode = "end"
    lines: list[str] = []
    decoder = open_stream(restarted.address, lines.append, reconnect=3)
    frames = list(decoder())
    assert [frame.index for frame in frames] == list(range(60))
    assert decoder.broken is None
    assert lines == []


def test_a_server_that_stays_away_ends_the_run_as_broken(restarted: LivePlaylist) -> None:
    lines: list[str] = []
    decoder = open_stream(restarted.address, lines.append, reconnect=1)
    frames = 0
    for _ in decoder():
        frames += 1
        restarted.mode = "404"
    assert frames >= 10
    assert decoder.broken is not None
    assert "could not be opened again in 1 attempt" in decoder.broken
    assert decoder.report()["outages"][-1]["seconds"] is None
    assert_every_frame_is_accounted_for(decoder, frames)


def test_an_address_that_does_not_answer_is_an_error_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(MediaError, match="rtsp://127.0.0.1:.*cannot be opened .Connection refused"):
        open_stream(f"rtsp://me:secret@127.0.0.1:{port}/x", lambda line: None)


def test_a_protocol_that_pyav_lacks_is_named_with_a_way_around(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*args: Any, **options: Any) -> None:
        raise av.error.ProtocolNotFoundError(1330794744, "Protocol not found", "srt://127.0.0.1:9000")

    monkeypatch.setattr(av, "open", lacking)
    with pytest.raises(MediaError, match=r"^srt://127\.0\.0\.1:9000: cannot be opened .*-c copy -f mpegts - \|"):
        open_stream("srt://127.0.0.1:9000", lambda line: None)


@pytest.mark.long
def test_srt_comes_through_the_ffmpeg_program_and_a_pipe(tmp_path: Path) -> None:
    """PyAV's wheels have no SRT: this is the way around that the error names, with a real sender."""
    ffmpeg = shutil.which("ffmpeg")
    known = "" if ffmpeg is None else subprocess.run([ffmpeg, "-protocols"], capture_output=True, text=True).stdout
    if ffmpeg is None or "srt" not in known.split():
        pytest.skip("needs an ffmpeg program with SRT")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"srt://127.0.0.1:{unused.getsockname()[1]}"
    quiet = [ffmpeg, "-loglevel", "error", "-nostdin"]
    encode = ["-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-g", "5", "-pix_fmt", "yuv420p"]
    source = ["-re", "-f", "lavfi", "-i", "testsrc=size=64x48:rate=25", "-t", "3", *encode, "-f", "mpegts"]
    pipe = tmp_path / "received.ts"
    os.mkfifo(pipe)
    with (
        subprocess.Popen([*quiet, *source, f"{address}?mode=listener"]) as sender,
        subprocess.Popen([*quiet, "-y", "-i", address, "-c", "copy", "-f", "mpegts", str(pipe)]) as receiver,
    ):
        decoder = open_stream(str(pipe), lambda line: None, enabled=True)
        processed = 0
        for frame in decoder():
            processed += 1
            decoder.finished(frame.index)
        receiver.kill()
        sender.kill()
    assert decoder.info.image_hw == (48, 64)
    assert processed >= 10
    assert_every_frame_is_accounted_for(decoder, processed)


def test_a_server_that_accepts_and_says_nothing_is_given_up() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(MediaError, match="cannot be opened"):
            open_stream(
                f"rtsp://127.0.0.1:{silent.getsockname()[1]}/x", lambda line: None, open_timeout_seconds=0.5
            )
        assert time.monotonic() - started < 5


def has_rtsp_server() -> bool:
    if not Path(SYSTEM_PYTHON).exists() or sys.platform != "linux":
        return False
    return subprocess.run([SYSTEM_PYTHON, "-c", PROBE], capture_output=True, timeout=60).returncode == 0


@contextmanager
def rtsp_server(port: int) -> Iterator[subprocess.Popen[str]]:
    command = [SYSTEM_PYTHON, str(REPOSITORY / "tests" / "rtsp_server.py"), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().strip() == "ready"
            yield server
        finally:
            server.kill()


@pytest.mark.long
def test_an_rtsp_server_that_stalls_and_one_that_is_started_again() -> None:
    if not has_rtsp_server():
        pytest.skip(
            "needs GStreamer's RTSP server: apt-get install gir1.2-gst-rtsp-server-1.0 python3-gi and plugins"
        )
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    lines: list[str] = []
    processed = 0
    with rtsp_server(port) as server:
        decoder = open_stream(f"rtsp://127.0.0.1:{port}/test", lines.append, enabled=True)
        assert decoder.info.image_hw == (64, 96)
        stream = decoder()
        for _ in range(10):
            decoder.finished(next(stream).index)
        server.send_signal(signal.SIGSTOP)
        processed += 10 + _until(decoder, stream, lines, "nothing came for 0.8 s")
    with rtsp_server(port):
        processed += _until(decoder, stream, lines, "frames again")
        decoder.close()
        processed += sum(1 for _ in stream)
    report = decoder.report()
    assert report["num_outages"] == 1
    assert report["outages"][0]["seconds"] > 0.7
    assert_every_frame_is_accounted_for(decoder, processed)


def _until(decoder: StreamDecoder, stream: Iterator[Any], lines: list[str], text: str) -> int:
    """Take frames until a line with ``text`` is there; a frame is waited for in another thread."""
    taken = 0
    waiting = threading.Thread(target=_wait_for, args=(lines, text), daemon=True)
    waiting.start()
    if text.startswith("nothing"):
        waiting.join(15)
    else:
        decoder.finished(next(stream).index)
        taken = 1
        waiting.join(15)
    assert not waiting.is_alive(), lines
    return taken


def _wait_for(lines: list[str], text: str) -> None:
    while not any(text in line for line in lines):
        time.sleep(0.02)
