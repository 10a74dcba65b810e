"""A live HLS playlist from a local server, which can stall, refuse, or break off."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import av

from tests.videos import pattern

SEGMENT_SECONDS, RATE, WINDOW = 0.4, 25, 6
SEGMENT_FRAMES = 10

Mode = Literal["serve", "stall", "404", "reset", "end"]


def write_segments(folder: Path, count: int) -> list[Path]:
    """MPEG-TS segments of 0.4 s, whose times go on from one to the next."""
    options = {"hls_time": str(SEGMENT_SECONDS), "hls_list_size": "0"}
    with av.open(str(folder / "all.m3u8"), "w", format="hls", options=options) as container:
        stream = container.add_stream(
            "libx264", rate=RATE, options={"g": str(SEGMENT_FRAMES), "bf": "0", "preset": "ultrafast"}
        )
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for index in range(count * SEGMENT_FRAMES):
            frame = av.VideoFrame.from_ndarray(pattern(index % 20), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return sorted(folder.glob("*.ts"), key=lambda path: int(path.stem.removeprefix("all")))


class LivePlaylist(ThreadingHTTPServer):
    """Serves ``/live.m3u8``; ``mode`` says how, and may be changed at any time."""

    daemon_threads = True

    def __init__(self, segments: list[Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.segments = segments
        self.mode: Mode = "serve"
        self.started = time.monotonic()
        self.address = f"http://127.0.0.1:{self.server_address[1]}/live.m3u8"

    def playlist(self) -> str:
        """The segments that are there by now."""
        newest = min(WINDOW - 1 + int((time.monotonic() - self.started) / SEGMENT_SECONDS), len(self.segments) - 1)
        first = max(0, newest - WINDOW + 1)
        lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:1", f"#EXT-X-MEDIA-SEQUENCE:{first}"]
        for number in range(first, newest + 1):
            lines += [f"#EXTINF:{SEGMENT_SECONDS},", f"{number}.ts"]
        if self.mode == "end":
            lines.append("#EXT-X-ENDLIST")
        return "\n".join(lines) + "\n"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are expected."""


class _Handler(BaseHTTPRequestHandler):
    server: LivePlaylist

    def do_GET(self) -> None:
        server = self.server
        if server.mode == "404":
            self.send_error(404)
            return
        while server.mode == "stall":
            time.sleep(0.05)
        name = self.path.lstrip("/")
        content = server.playlist().encode()
        if name.endswith(".ts"):
            content = server.segments[int(name.removesuffix(".ts"))].read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if server.mode == "reset" else content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def live_playlist(folder: Path, count: int = 40) -> Iterator[LivePlaylist]:
    """A running server of ``count`` segments."""
    with LivePlaylist(write_segments(folder, count)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.mode = "serve"
            server.shutdown()
            thread.join()
