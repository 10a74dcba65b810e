"""The packets of a video stream in file order, each with whether data may be missing before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av.error
import numpy as np

_MAX_READ_ERRORS = 200
"""Consecutive errors after which the rest of a file counts as unreadable."""
_HEADER_BYTES = {"matroska": 64, "avi": 24, "flv": 24}
"""Containers whose packets have nothing but small headers between them. More bytes than these between two packets
hold something FFmpeg could not read."""
_AVI_CHUNK_HEADER_BYTES = 8
_CONSTANT_RATE_FORMATS = frozenset({"mpeg"})
"""Containers of constant frame rate that give no other sign of missing packets than their times.

FFmpeg's times for them are off by a frame now and then, so only longer jumps count.
"""


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
        from_start: The position is the start of the file.
    """

    def __init__(self, container: Any, stream: Any, *, from_start: bool = True) -> None:
        self.last_byte = 0
        self._container = container
        self._stream = stream
        names = container.format.name.split(",")
        self._header_bytes = next((_HEADER_BYTES[name] for name in names if name in _HEADER_BYTES), None)
        self._numbering = _AviNumbering(stream, from_start=from_start) if "avi" in names else None
        self.always_suspect = has_guessed_times(container)
        self._has_hidden_frames = stream.codec_context.name in ("vp8", "libvpx")
        self._position: int | None = None

    @property
    def lost_at_start(self) -> int:
        """Packets that are known to be missing before the first one."""
        return 0 if self._numbering is None else self._numbering.lost_at_start

    def __iter__(self) -> Iterator[SourcePacket]:
        suspect = False
        for packet, failed in self._read():
            suspect |= failed
            if packet is None:
                continue
            hole = self._hole_before(packet)
            suspect |= hole > 0
            if packet.stream_index != self._stream.index:
                continue
            suspect |= packet.is_corrupt or self.always_suspect
            if self._numbering is not None:
                suspect |= self._numbering.correct_time(packet, hole)
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
            except IndexError:  # at the end, where streams have come up that were not in the header
                return
            else:
                return

    def _hole_before(self, packet: Any) -> int:
        """How many bytes before the packet belong to no packet. Laced packets share one position."""
        if packet.pos is None:
            return 0
        before, first = self.last_byte, self._position is None
        same = packet.pos == self._position
        self._position = packet.pos
        self.last_byte = max(before, packet.pos) + packet.size if not same else before + packet.size
        if first or self._header_bytes is None or packet.pos - before <= self._header_bytes:
            return 0
        return int(packet.pos - before)

    def _is_hidden(self, packet: Any) -> bool:
        """VP8 stores reference pictures that are not shown as packets of their own; a header bit tells."""
        return self._has_hidden_frames and not bytes(packet)[0] >> 4 & 1


def has_guessed_times(container: Any) -> bool:
    """Whether FFmpeg makes up most of the times, as for MPEG program streams."""
    return bool(_CONSTANT_RATE_FORMATS.intersection(container.format.name.split(",")))


class _AviNumbering:
    """Times of AVI packets past lost ones. AVI stores no times: FFmpeg counts the packets it finds.

    The index at the end of the file tells a packet's number from its position. If positions do not match the
    index, the number of lost packets is estimated from the bytes between two packets and their usual size.
    """

    def __init__(self, stream: Any, *, from_start: bool) -> None:
        positions = (entry.pos + _AVI_CHUNK_HEADER_BYTES for entry in stream.index_entries)
        self._positions = np.fromiter(positions, np.int64)
        self._next = 0 if from_start else None
        self._lost = 0
        self.lost_at_start = 0
        self._bytes, self._packets = 0, 0

    def correct_time(self, packet: Any, hole: int) -> bool:
        """Shift the packet's times by the number of lost packets; whether some were lost right before it."""
        number = int(np.searchsorted(self._positions, packet.pos))
        known = number < len(self._positions) and self._positions[number] == packet.pos
        lost = 0
        if known and self._next is not None:
            lost = max(0, number - self._next)
        elif hole and self._packets:
            lost = max(1, round(hole * self._packets / self._bytes))
        if not self._packets:
            self.lost_at_start = lost
        self._next = number + 1 if known else None if self._next is None else self._next + lost + 1
        self._bytes, self._packets = self._bytes + packet.size, self._packets + 1
        self._lost += lost
        if self._lost:
            duration = packet.duration or 1
            packet.pts = None if packet.pts is None else packet.pts + self._lost * duration
            packet.dts = None if packet.dts is None else packet.dts + self._lost * duration
        return lost > 0
