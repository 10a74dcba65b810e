"""One connection to a stream: opened with time limits, read until it ends, breaks or stalls."""

from __future__ import annotations

import io
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import av.error

from pipeline.core.errors import MediaError
from pipeline.core.records import VideoInfo
from pipeline.formats.video import choose_stream, color_of, reason_of, upright_hw
from stages.decode.address import STANDARD_INPUT, StreamAddress
from stages.decode.config import LiveConfig

CAMERA_FORMATS: Final[dict[str, str]] = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
"""FFmpeg's input for cameras on each platform."""

_POLL_SECONDS = 0.1
_LOW_DELAY_PROBE_MICROSECONDS = 2_000_000
_MAX_BAD_PACKETS = 500
"""Packets in a row that cannot be decoded until the connection counts as broken."""
_DEFAULT_RATE = Fraction(25)
_MAX_RATE = 1000


class BrokenStreamError(Exception):
    """A connection ended before the stream did. The message says how."""


@dataclass(frozen=True, slots=True)
class StreamFrame:
    """A decoded frame of a connection.

    Attributes:
        raw: The PyAV frame.
        seconds: Its presentation time as the stream counts; None without one.
    """

    raw: Any
    seconds: float | None


class Connection:
    """An open stream.

    Args:
        address: Where it comes from.
        config: Time limits and options.
        stop: Whether to stop waiting for a pipe.
        stream_index: Which stream of it; None for FFmpeg's choice.

    Raises:
        BrokenStreamError: It cannot be opened, or not in time.
        MediaError: It holds no video, or FFmpeg has no decoder for it.
    """

    def __init__(
        self, address: StreamAddress, config: LiveConfig, stop: Callable[[], bool], stream_index: int | None = None
    ) -> None:
        self._address = address
        self._pipe: _Pipe | None = None
        self.bad_packets = 0
        try:
            self._container = self._open(config, stop)
        except av.error.FFmpegError as error:
            self._close_pipe()
            raise BrokenStreamError(_reason(error, config.open_timeout_seconds)) from error
        except OSError as error:
            self._close_pipe()
            raise BrokenStreamError(error.strerror or str(error)) from error
        self._stall_seconds = config.stall_seconds
        try:
            self._stream = choose_stream(self._container, Path(address.shown), stream_index)
        except MediaError:
            self.close()
            raise
        # Decoding several frames at once would hold each of them back by as many frames.
        self._stream.codec_context.thread_type = "SLICE" if config.enabled else "AUTO"

    def frames(self) -> Iterator[StreamFrame]:
        """The frames as they come, until the stream ends.

        Raises:
            BrokenStreamError: The connection broke, or nothing came for ``stall_seconds``.
        """
        bad = 0
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                raise BrokenStreamError(_reason(error, self._stall_seconds)) from error
            if packet is None:
                return
            try:
                decoded = packet.decode()
            except av.error.FFmpegError:
                self.bad_packets, bad = self.bad_packets + 1, bad + 1
                if bad > _MAX_BAD_PACKETS:
                    raise BrokenStreamError(f"{bad} packets in a row cannot be decoded") from None
                continue
            for raw in decoded:
                bad = 0
                yield StreamFrame(raw, None if raw.pts is None else float(raw.pts * raw.time_base))

    @property
    def has_end(self) -> bool:
        """Whether the end of the data is the end of the stream, and not a server that went away.

        A playlist has a duration once it says that it is finished.
        """
        return self._address.kind in ("pipe", "file") or bool(self._container.duration)

    def info(self, first: StreamFrame) -> VideoInfo:
        """Facts about the stream from its first frame."""
        height, width = upright_hw(first.raw)
        rates = (self._stream.average_rate, self._stream.guessed_rate)
        rate = next((Fraction(value) for value in rates if value and 0 < value <= _MAX_RATE), _DEFAULT_RATE)
        return VideoInfo(
            path=Path(self._address.name),
            height=height,
            width=width,
            frame_rate=rate,
            num_frames=None,
            time_base=Fraction(self._stream.time_base or 1 / rate),
            stream_index=self._stream.index,
            color=color_of(first.raw),
            address=self._address.shown,
        )

    def close(self) -> None:
        """Close it; call from the thread that reads."""
        self._container.close()
        self._close_pipe()

    def _open(self, config: LiveConfig, stop: Callable[[], bool]) -> Any:
        options = {"protocol_whitelist": self._address.protocols} if self._address.protocols else {}
        if config.enabled and self._address.kind in ("network", "pipe"):
            options["analyzeduration"] = str(_LOW_DELAY_PROBE_MICROSECONDS)
        if self._address.url.startswith(("rtsp:", "rtsps:")):
            options["rtsp_transport"] = config.rtsp_transport
        file, input_format = self._file_and_format(config, stop)
        return av.open(
            file,
            format=input_format,
            options={**options, **config.options},
            timeout=None if self._pipe else (config.open_timeout_seconds, config.stall_seconds),
            metadata_errors="replace",
        )

    def _file_and_format(self, config: LiveConfig, stop: Callable[[], bool]) -> tuple[Any, str | None]:
        if self._address.kind == "pipe":
            self._pipe = _Pipe(self._address.url, stop)
            return self._pipe, config.format
        if self._address.kind == "camera":
            return self._address.url, config.format or CAMERA_FORMATS.get(sys.platform)
        if self._address.kind == "file":
            return f"file:{self._address.url}", config.format
        return self._address.url, config.format

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            self._pipe.close()


class _Pipe(io.RawIOBase):
    """A pipe that is read without waiting past a stop: FFmpeg itself would wait inside ``read``."""

    def __init__(self, name: str, stop: Callable[[], bool]) -> None:
        is_input = name == STANDARD_INPUT
        # Opened without blocking, or opening a named pipe would wait for its writer.
        self._handle = os.dup(sys.stdin.fileno()) if is_input else os.open(name, os.O_RDONLY | os.O_NONBLOCK)
        self._stop = stop
        self._has_begun = is_input

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Some bytes; none at the end, or once reading is to stop."""
        while not self._stop():
            if not select.select([self._handle], [], [], _POLL_SECONDS)[0]:
                continue
            try:
                data = os.read(self._handle, size if size > 0 else io.DEFAULT_BUFFER_SIZE)
            except BlockingIOError:
                continue
            if data or self._has_begun:
                self._has_begun = True
                return data
            time.sleep(_POLL_SECONDS)  # a named pipe that nobody has opened for writing yet
        return b""

    def close(self) -> None:
        if not self.closed:
            os.close(self._handle)
        super().close()


def _reason(error: Exception, limit_seconds: float) -> str:
    """FFmpeg's text; PyAV's time limit shows as an immediate exit."""
    if isinstance(error, av.error.ProtocolNotFoundError):
        return (
            "the FFmpeg inside PyAV was built without this protocol; receive it with the ffmpeg program: "
            "ffmpeg -i ADDRESS -c copy -f mpegts - | liftstream run - ..."
        )
    if isinstance(error, av.error.ExitError | av.error.TimeoutError):
        return f"nothing came for {limit_seconds:g} s"
    return reason_of(error)
