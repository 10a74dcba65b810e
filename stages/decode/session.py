"""One opened video file: frames come out with their place on the timeline of the source."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Any

import av
import av.error

from pipeline.core.records import VideoInfo
from pipeline.formats.video import choose_stream, open_video
from stages.decode.packets import PacketReader, SourcePacket, has_guessed_times
from stages.decode.timeline import REORDER_WINDOW, SHORTEST_JUMP_FRAMES, Place, Timeline

_LOOK_AHEAD = 4 * REORDER_WINDOW
"""Compressed packets that are read ahead at most."""
_CHECKED_PACKETS = 8
_LONGEST_JUMP_SECONDS = 3600.0
"""Longest gap that is believed if the container does not say how long the video is."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded frame.

    Attributes:
        raw: The PyAV frame.
        place: Its place on the session's timeline; None if the frame's time is missing or wrong.
        trouble: How many signs of damage there were in the session so far: errors and suspect packets.
        errors: How many packets could not be decoded so far.
    """

    raw: Any
    place: Place | None
    trouble: int
    errors: int


class Session:
    """Decodes from one position of a file to its end, past everything that cannot be decoded.

    Args:
        info: Facts about the file; only path, stream, rate and time base are used.
        single_thread: Decode in one thread. Then an error belongs to the packet it was raised for, and what a
            decoder makes up for missing data does not depend on timing.
        seek_pts: Begin at the last key frame at or before this time; None begins at the start of the file.
    """

    def __init__(self, info: VideoInfo, *, single_thread: bool, seek_pts: int | None = None) -> None:
        self.container = open_video(info.path)
        self.stream = choose_stream(self.container, info.path, info.stream_index)
        self._codec = self.stream.codec_context
        if single_thread:
            self._codec.thread_count = 1
        else:
            self._codec.thread_type = "AUTO"
        self.key_pts: int | None = None
        self._wait_for_key = seek_pts is not None
        self._finished = seek_pts is not None and not self._seek(seek_pts)
        self.reader = PacketReader(self.container, self.stream, from_start=seek_pts is None)
        self.timeline = timeline_for(info, self.container, self.stream)
        self.counted_packets = 0
        self.trouble = 0
        self.errors = 0
        self._packets = iter(self.reader)
        self._queue: deque[SourcePacket] = deque()
        self._frames: deque[Any] = deque()
        self._read_all = False

    def close(self) -> None:
        """Close the file."""
        self.container.close()

    def next(self) -> Decoded | None:
        """The next frame in presentation order, None after the last."""
        while not self._frames:
            if self._finished:
                return None
            self._decode_next()
        raw = self._frames.popleft()
        place = None if self._is_too_late(raw.pts) else self.place_of(raw.pts)
        return Decoded(raw, place, self.trouble, self.errors)

    def push_back(self, decoded: Decoded) -> None:
        """Make :meth:`next` return this frame again."""
        self._frames.appendleft(decoded.raw)

    def place_of(self, pts: int | None) -> Place | None:
        """Place of a time on this session's timeline; reads ahead for it."""
        if pts is None:
            return None
        while self.timeline.place_of(pts) is None and len(self._queue) < _LOOK_AHEAD and self._fill():
            pass
        return self.timeline.place_of(pts)

    def _is_too_late(self, pts: int | None) -> bool:
        """Whether a frame's time is wrong because most packets that are not decoded yet have earlier ones."""
        if pts is None:
            return False
        while len(self._queue) < _CHECKED_PACKETS and self._fill():
            pass
        following = [item.packet.pts for item in islice(self._queue, _CHECKED_PACKETS) if item.counts]
        earlier = sum(other is not None and other < pts for other in following)
        return bool(2 * earlier > len(following))

    def _seek(self, pts: int) -> bool:
        try:
            self.container.seek(pts, stream=self.stream, backward=True)
        except av.error.FFmpegError:
            return False
        return True

    def _decode_next(self) -> None:
        if not self._queue and not self._fill():
            self._finished = True
            self._decode(None)
            return
        packet = self._queue.popleft().packet
        if self._wait_for_key:
            if not packet.is_keyframe or packet.is_discard:
                return
            self._wait_for_key = False
            self.key_pts = packet.pts
        self._decode(packet)

    def _decode(self, packet: Any | None) -> None:
        try:
            self._frames.extend(self._codec.decode(packet))
        except av.error.FFmpegError:
            self.errors += 1
            self.trouble += 1

    def _fill(self) -> bool:
        """Read one packet; False at the end."""
        if self._read_all:
            return False
        item = next(self._packets, None)
        if item is None:
            self._read_all = True
            self.timeline.finish()
            return False
        self._queue.append(item)
        if item.suspect and not self.reader.always_suspect:
            self.trouble += 1
        if item.counts:
            if self.counted_packets == 0:
                self.timeline.lost_at_start = self.reader.lost_at_start
            self.counted_packets += 1
            if item.packet.pts is not None:
                self.timeline.add(item.packet.pts, suspect=item.suspect)
        return True


def timeline_for(info: VideoInfo, container: Any, stream: Any) -> Timeline:
    """An empty timeline with the frame rate and duration of a file."""
    seconds = promised_seconds(container, stream) or _LONGEST_JUMP_SECONDS
    frame_pts = float(1 / (info.frame_rate * info.time_base))
    return Timeline(frame_pts, seconds / float(info.time_base), shortest_jump_frames(container))


def shortest_jump_frames(container: Any) -> float:
    """From how many frames on a jump in time can be missing packets: one more where FFmpeg guesses times."""
    return SHORTEST_JUMP_FRAMES + has_guessed_times(container)


def promised_seconds(container: Any, stream: Any) -> float | None:
    """The duration that the container gives for the stream or the file, None without one."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None
