"""A small web server for the annotated stream: a page, Motion JPEG, single pictures, and the counts.

``/`` is the page, ``/stream.mjpg`` the pictures (``multipart/x-mixed-replace``, which every browser, VLC and
OpenCV play), ``/frame.jpg`` the newest one, ``/status.json`` the counts. Every viewer gets the newest picture when
it is ready for one, so a slow viewer holds nobody back. Pictures are encoded only while somebody looks.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.core.errors import InputError, OutputError

LOCAL_HOST: Final = "127.0.0.1"
_BOUNDARY: Final = "liftstream-frame"
_QUALITY: Final = 80
_IDLE_SECONDS: Final = 5.0
"""After so long without a new picture the last one is sent again, which shows whether the viewer is there."""

_PAGE: Final = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>liftstream</title>
<style>body{margin:0;background:#111;color:#ddd;font:14px system-ui,sans-serif}
img{display:block;max-width:100vw;max-height:calc(100vh - 3em);margin:auto}p{text-align:center;margin:.8em}</style>
<img src="stream.mjpg" alt="The annotated stream"><p id="status" role="status"></p>
<script>
const line = document.getElementById("status");
async function refresh() {
  try {
    const s = await (await fetch("status.json")).json();
    line.textContent = `frame ${s.frame} · ${s.seconds.toFixed(1)} s · ${s.fps.toFixed(1)} frames/s · `
      + `${s.dropped ?? 0} dropped` + (s.latency_p95 === null ? "" : ` · latency ${s.latency_p95} s (p95)`);
  } catch { line.textContent = "The stream has ended."; }
}
setInterval(refresh, 1000); refresh();
</script></html>
"""


def parse_bind(text: str) -> tuple[str, int]:
    """``:8088``, ``8088`` or ``HOST:PORT``; without a host only this machine can connect.

    Raises:
        InputError: Not a port, or not a host's address.

    >>> parse_bind(":8088"), parse_bind("0.0.0.0:80")
    (('127.0.0.1', 8088), ('0.0.0.0', 80))
    """
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or LOCAL_HOST
    try:
        ip_address("127.0.0.1" if host == "localhost" else host)
        number = int(port)
    except ValueError:
        number = -1
    if not 0 <= number <= 65_535:
        raise InputError(f"--preview {text}: write it as :PORT, or ADDRESS:PORT to let other machines connect")
    return host, number


class Preview:
    """Context manager around the server; :meth:`show` gives it the newest picture and returns at once.

    Args:
        host: Address to listen on. On this machine's own, requests that name another host are refused, so that no
            web page can read the stream through a name that leads here.
        port: 0 for any free one.
        status: Further values for ``/status.json``.

    Raises:
        OutputError: The port is taken or not allowed.
    """

    def __init__(self, host: str, port: int, status: Callable[[], dict[str, Any]] = dict) -> None:
        self._status = status
        self._changed = threading.Condition()
        self._image: npt.NDArray[np.uint8] | None = None
        self._jpeg: tuple[int, bytes] = (0, b"")
        self._number = 0
        self._values: dict[str, Any] = {"frame": 0, "seconds": 0.0, "fps": 0.0}
        self._times: list[float] = []
        self._closed = False
        try:
            self._server = _Server((host, port), self)
        except OSError as error:
            raise OutputError(f"--preview {host}:{port}: cannot listen there ({error.strerror})") from error
        self.is_local = ip_address("127.0.0.1" if host == "localhost" else host).is_loopback
        self.address = f"http://{'localhost' if self.is_local else host}:{self._server.server_address[1]}/"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="preview", daemon=True
        )

    def __enter__(self) -> Preview:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def show(self, image: npt.NDArray[np.uint8], index: int, seconds: float) -> None:
        """The newest picture.

        Args:
            image: uint8 ``(H, W, 3)`` RGB; must not be changed afterwards.
            index: The frame's index.
            seconds: Its presentation time.
        """
        now = time.monotonic()
        with self._changed:
            self._times = [*self._times[-29:], now]
            span = now - self._times[0]
            rate = (len(self._times) - 1) / span if span > 0 else 0.0
            self._values = {"frame": index, "seconds": round(seconds, 3), "fps": round(rate, 2)}
            self._image, self._number = image, self._number + 1
            self._changed.notify_all()

    def status(self) -> dict[str, Any]:
        """What ``/status.json`` says."""
        with self._changed:
            return {"dropped": None, "latency_p95": None, **self._values, **self._status()}

    def next_jpeg(self, after: int) -> tuple[int, bytes] | None:
        """The newest picture as JPEG with its number, once it is newer than ``after``; None at the end."""
        with self._changed:
            deadline = time.monotonic() + _IDLE_SECONDS
            while not self._closed and self._number <= after and time.monotonic() < deadline:
                self._changed.wait(_IDLE_SECONDS)
            if self._closed:
                return None
            number, image = self._number, self._image
            if self._jpeg[0] == number or image is None:
                return self._jpeg
        encoded = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
        with self._changed:
            self._jpeg = max(self._jpeg, (number, encoded), key=lambda entry: entry[0])
        return number, encoded


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], preview: Preview) -> None:
        self.preview = preview
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A viewer that went away is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.0"
    timeout = 30

    def do_GET(self) -> None:
        preview = self.server.preview
        if preview.is_local and not self._names_this_machine():
            self.send_error(HTTPStatus.FORBIDDEN, "only this machine can look")
            return
        path = self.path.partition("?")[0]
        if path == "/":
            self._send("text/html; charset=utf-8", _PAGE.encode())
        elif path == "/status.json":
            self._send("application/json", json.dumps(preview.status()).encode())
        elif path == "/frame.jpg":
            self._send_frame(preview)
        elif path == "/stream.mjpg":
            self._send_stream(preview)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not worth a line."""

    def _names_this_machine(self) -> bool:
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        return host in ("localhost", "127.0.0.1", "[::1]")

    def _send_frame(self, preview: Preview) -> None:
        found = preview.next_jpeg(after=0)
        if found is None or not found[1]:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, "no picture yet")
        else:
            self._send("image/jpeg", found[1])

    def _send(self, kind: str, content: bytes) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def _send_stream(self, preview: Preview) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        number = 0
        while (found := preview.next_jpeg(number)) is not None:
            number, jpeg = found
            if not jpeg:
                continue
            head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            self.wfile.write(head.encode() + jpeg + b"\r\n")
