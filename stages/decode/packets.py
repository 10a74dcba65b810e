"""The packets of a video stream in file order, each with whether data may be missing before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av.error

_MAX_READ_ERRORS = 200
"""Consecutive errors after which the rest of a file counts as unreadable."""
_TILED_FORMATS = frozenset({"matroska", "webm", "avi", "flv"})
"""Containers in which packets follow one another with nothing but small headers between them."""
_HEADER_BYTES = 100
"""More bytes than this between two packets of such a container hold something FFmpeg could not read."""
_CONSTANT_RATE_FORMATS = frozenset({"mpeg"})
"""Containers of constant frame rate that give no other sign of missing packets than their times."""


@dataclass(frozen=True, slots=True)
class SourcePacket:
    """A packet of the stream.

    Attributes:
        packet: The PyAV packet.
        counts: It holds a frame of the source: not discarded by an edit list, not a hidden reference picture.
        suspect: Data may be missing in it or right before it.
    """

    packet: Any
    counts: bool
    suspect: bool


class PacketReader:
    """Reads packets past damage.

    ``last_byte`` is the position after the last packet of any stream. ``always_suspect`` tells that the container
    gives no sign of missing packets, so that all of them are marked as suspect.

    Args:
        container: An open PyAV input container, at the position to read from.
        stream: Its video stream.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self.last_byte = 0
        self._container = container
        self._stream = stream
        names = set(container.format.name.split(","))
        self._tiled = bool(names & _TILED_FORMATS)
        self.always_suspect = bool(names & _CONSTANT_RATE_FORMATS)
        self._has_hidden_frames = stream.codec_context.name in ("vp8", "libvpx")
        self._position: int | None = None

    def __iter__(self) -> Iterator[SourcePacket]:
        suspect = False
        for packet, failed in self._read():
            suspect |= failed
            if packet is None:
                continue
            suspect |= self._follows_a_hole(packet)
            if packet.stream_index != self._stream.index:
                continue
            suspect |= packet.is_corrupt or self.always_suspect
            yield SourcePacket(packet, not packet.is_discard and not self._is_hidden(packet), suspect)
            suspect = False

    def _read(self) -> Iterator[tuple[Any | None, bool]]:
        """Packets of all streams, and None with True where reading failed."""
        errors = 0
        while errors < _MAX_READ_ERRORS:
            try:
                for packet in self._container.demux():
                    if packet.size:
                        errors = 0
                        yield packet, False
            except av.error.FFmpegError:
                errors += 1
                yield None, True
            else:
                return

    def _follows_a_hole(self, packet: Any) -> bool:
        """Whether bytes before the packet belong to no packet. Laced packets share one position."""
        if packet.pos is None:
            return False
        before, first = self.last_byte, self._position is None
        same = packet.pos == self._position
        self._position = packet.pos
        self.last_byte = max(before, packet.pos) + packet.size if not same else before + packet.size
        return self._tiled and not first and packet.pos - before > _HEADER_BYTES

    def _is_hidden(self, packet: Any) -> bool:
        """VP8 stores reference pictures that are not shown as packets of their own; a header bit tells."""
        return self._has_hidden_frames and not bytes(packet)[0] >> 4 & 1
