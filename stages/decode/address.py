"""Which inputs are streams (network, camera, pipe), and how they are named without the password in an address."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit, urlunsplit

from pipeline.core.errors import MediaError

Kind = Literal["network", "playlist", "camera", "pipe", "file"]
"""``network``: comes at its own pace (RTSP, RTMP, SRT, UDP). ``playlist``: over HTTP, in bursts. ``file``: a file
that is read as if it were a camera."""

PROTOCOLS: Final[dict[str, str]] = {
    "rtsp": "rtsp,rtp,tcp,udp,tls,http,srtp",
    "rtsps": "rtsp,rtsps,rtp,tcp,udp,tls,srtp",
    "rtmp": "rtmp,tcp",
    "rtmps": "rtmps,rtmp,tls,tcp",
    "srt": "srt,udp",
    "udp": "udp",
    "rtp": "rtp,udp",
    "tcp": "tcp",
    "http": "http,https,tcp,tls,crypto,data",
    "https": "http,https,tcp,tls,crypto,data",
}
"""The schemes that are read, and what FFmpeg may open for each: a playlist from the network cannot name a file."""

STANDARD_INPUT: Final = "-"


@dataclass(frozen=True, slots=True)
class StreamAddress:
    """Where a stream comes from.

    Attributes:
        url: What is opened, with the password if there is one.
        kind: How it behaves.
        shown: The address without user and password, for messages and files.
        name: A name for its folder of results.
        protocols: What FFmpeg may open for it; empty where FFmpeg opens no address.
    """

    url: str = field(repr=False)
    kind: Kind
    shown: str
    name: str
    protocols: str = ""

    @property
    def reopens(self) -> bool:
        """Whether it can be opened again after it broke."""
        return self.kind in ("network", "playlist", "camera")

    @property
    def bursts(self) -> bool:
        """Whether frames come as fast as they can be read, so that they are held until their time has come."""
        return self.kind in ("playlist", "pipe", "file")


def stream_address(source: str | Path, *, live: bool = False) -> StreamAddress | None:
    """The address of a stream; None for a file or a folder.

    Args:
        source: An address with a scheme, ``-`` for standard input, a named pipe, a camera's device, or a path.
        live: Treat a video file as a stream too.

    Raises:
        MediaError: A scheme that is not read.
    """
    text = str(source)
    if "://" in text:
        return _network(text)
    if text == STANDARD_INPUT:
        return StreamAddress(text, "pipe", "standard input", "stdin")
    path = Path(text)
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        return StreamAddress(text, "pipe", text, _safe(path.stem))
    if stat.S_ISCHR(mode):
        return StreamAddress(text, "camera", text, _safe(path.name))
    return StreamAddress(text, "file", text, path.stem) if live and stat.S_ISREG(mode) else None


def _network(text: str) -> StreamAddress:
    parts = urlsplit(text)
    scheme = parts.scheme.lower()
    if scheme not in PROTOCOLS:
        raise MediaError(
            f"{_without_login(text)}: addresses can begin with {', '.join(PROTOCOLS)}; files have none"
        )
    path = re.sub(r"\.[A-Za-z0-9]{1,5}$", "", parts.path)
    host = parts.netloc.rpartition("@")[2]
    name = _safe(f"{host}{path}") or scheme
    kind: Kind = "playlist" if scheme in ("http", "https") else "network"
    return StreamAddress(text, kind, _without_login(text), name, PROTOCOLS[scheme])


def _without_login(text: str) -> str:
    """The address without user, password and query, which may hold a token.

    >>> _without_login("rtsp://admin:secret@camera:554/main?key=1")
    'rtsp://camera:554/main'
    """
    parts = urlsplit(text)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _safe(text: str) -> str:
    """Text as the name of a folder.

    >>> _safe("camera:554/live/main")
    'camera-554-live-main'
    """
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:80]
