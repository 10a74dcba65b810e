"""Whether a video file goes on to its end, from the structure of its container.

FFmpeg reads a file that was cut short up to its last whole packet, mostly without an error. The container shows
what is missing: sizes in headers that are larger than the file, or data after the last packet that does not belong
there. A container that says nothing about its end (raw H.264) counts as whole.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

_TAIL_BYTES = 1 << 16
_EBML_SEGMENT = 0x18538067
_MATROSKA_AFTER_CLUSTERS = tuple(
    bytes.fromhex(identifier)
    for identifier in ("1c53bb6b", "1254c367", "114d9b74", "1549a966", "1941a469", "1043a770", "1654ae6b")
)
"""Cues, Tags, SeekHead, Info, Attachments, Chapters and Tracks."""
_MATROSKA_BLOCK_BYTES = 64
"""More bytes than a block can have after its data, such as its duration and references."""
_FLV_END_BYTES = 64
_AVI_AFTER_FRAMES = (b"idx1", b"JUNK", b"LIST", b"RIFF", b"ix0")
_TS_SYNC = 0x47
_TS_LAYOUTS = ((188, 0), (192, 4), (204, 0))
"""Bytes per packet and place of the sync byte: plain, Blu-ray, with error correction."""
_TS_HEAD_PACKETS = 16


def ends_early(path: Path, container_format: str, last_byte: int) -> bool:
    """Whether the container shows that the file lacks its end, or that what follows the last packet is damaged.

    Args:
        path: The file.
        container_format: FFmpeg's name of the demuxer.
        last_byte: Position after the last packet that was read.
    """
    names = container_format.split(",")
    check = next((_CHECKS[name] for name in names if name in _CHECKS), None)
    if check is None:
        return False
    with path.open("rb") as file:
        return check(file, path.stat().st_size, last_byte)


def starts_damaged(path: Path, container_format: str) -> bool:
    """Whether the first packets of a transport stream are damaged: FFmpeg looks for the first whole one."""
    if container_format != "mpegts":
        return False
    with path.open("rb") as file:
        layout = _ts_layout(file)
        if layout is None:
            return False
        file.seek(0)
        return _lacks_sync(file.read(_TS_HEAD_PACKETS * layout[0]), *layout)


def _matroska(file: BinaryIO, size: int, last_byte: int) -> bool:
    """The segment's size; else the element after the last block must be one that may stand there."""
    header = file.read(64)
    at = header.find(_EBML_SEGMENT.to_bytes(4, "big"))
    if at >= 0 and len(header) > at + 12:
        length, value = _ebml_size(header[at + 4 : at + 12])
        if value is not None and at + 4 + length + value > size:
            return True
    file.seek(last_byte)
    after = file.read(_MATROSKA_BLOCK_BYTES)
    return len(after) == _MATROSKA_BLOCK_BYTES and not any(known in after for known in _MATROSKA_AFTER_CLUSTERS)


def _ebml_size(data: bytes) -> tuple[int, int | None]:
    """Length and value of an EBML variable-length size; the value is None if it is unknown."""
    length = 9 - data[0].bit_length()
    if length > 8:
        return length, None
    value = int.from_bytes(data[:length], "big") & ((1 << 7 * length) - 1)
    return length, None if value == (1 << 7 * length) - 1 else value


def _avi(file: BinaryIO, size: int, last_byte: int) -> bool:
    """The RIFF chunks must lie in the file, and the last frame be followed by the index or nothing."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        header = file.read(8)
        if header[:4] != b"RIFF":
            break
        at += 8 + int.from_bytes(header[4:], "little")
        if at > size + 1:
            return True
    file.seek(last_byte + last_byte % 2)
    after = file.read(4)
    return len(after) == 4 and not after.startswith(_AVI_AFTER_FRAMES)


def _mov(file: BinaryIO, size: int, last_byte: int) -> bool:
    """The top-level boxes must end with the file."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length == 0:
            return False
        if length < 8:
            return True
        at += length
    return at > size


def _flv(file: BinaryIO, size: int, last_byte: int) -> bool:
    """The file ends with the size of its last tag, soon after the last packet."""
    if size < 15 or size - last_byte > _FLV_END_BYTES:
        return True
    file.seek(size - 4)
    length = int.from_bytes(file.read(4), "big")
    if not 11 <= length <= size - 4:
        return True
    file.seek(size - 4 - length)
    tag = file.read(4)
    return tag[0] & 0x1F not in (8, 9, 18) or int.from_bytes(tag[1:], "big") != length - 11


def _mpegts(file: BinaryIO, size: int, last_byte: int) -> bool:
    """Packets of 188, 192 or 204 bytes, the last one whole, and with sync bytes after the last picture."""
    layout = _ts_layout(file)
    if layout is None:
        return False
    stride, offset = layout
    if size % stride:
        return True
    file.seek(max(last_byte // stride * stride, size - _TAIL_BYTES // stride * stride))
    return _lacks_sync(file.read(_TAIL_BYTES), stride, offset)


def _ts_layout(file: BinaryIO) -> tuple[int, int] | None:
    """Packet size and position of the sync byte in a transport stream, from where most sync bytes are."""
    file.seek(0)
    head = np.frombuffer(file.read(_TAIL_BYTES), np.uint8) == _TS_SYNC
    best = max(_TS_LAYOUTS, key=lambda layout: head[layout[1] :: layout[0]].mean() if len(head) > 204 else 0.0)
    return best if len(head) > 204 and head[best[1] :: best[0]].mean() > 0.5 else None


def _lacks_sync(data: bytes, stride: int, offset: int) -> bool:
    return any(byte != _TS_SYNC for byte in data[offset::stride])


def _mpeg(file: BinaryIO, size: int, last_byte: int) -> bool:
    """The last packet of the program stream must lie in the file."""
    first = max(0, size - 2 * _TAIL_BYTES)
    file.seek(first)
    tail = file.read()
    at = max(tail.rfind(b"\x00\x00\x01" + bytes([code])) for code in (*range(0xC0, 0xF0), 0xBD, 0xBE, 0xBF))
    if at < 0 or at + 6 > len(tail):
        return at >= 0
    return at + 6 + int.from_bytes(tail[at + 4 : at + 6], "big") > len(tail)


def _ogg(file: BinaryIO, size: int, last_byte: int) -> bool:
    """The last page must lie in the file."""
    file.seek(max(0, size - 2 * _TAIL_BYTES))
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0 or at + 27 > len(tail):
        return True
    segments = tail[at + 27 : at + 27 + tail[at + 26]]
    return at + 27 + tail[at + 26] + sum(segments) > len(tail)


_CHECKS: dict[str, Callable[[BinaryIO, int, int], bool]] = {
    "matroska": _matroska,
    "avi": _avi,
    "mov": _mov,
    "flv": _flv,
    "mpegts": _mpegts,
    "mpeg": _mpeg,
    "ogg": _ogg,
}
