"""A video from any position: exact indices and times, past damage, the same frames wherever reading began.

A frame's index is its place in the source: the rank of its packet's presentation time, so that frames that cannot
be decoded keep their index. To begin in the middle, the file is opened at a key frame before the wanted frame; if
that does not lead to it (no index, no times, damage), the file is decoded from its start.

Decoding uses several threads until the first sign of damage. Then the file is decoded again from its start with
one thread, and the frames that were passed on are skipped: only so an error belongs to one packet, and what a
decoder fills in for missing data is the same in every run, whether or not it was interrupted.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.core.records import VideoInfo
from pipeline.core.state import State
from pipeline.formats.video import open_video
from stages.decode.ending import find_missing_end
from stages.decode.packets import has_guessed_times
from stages.decode.probe import find_start
from stages.decode.session import Decoded, Session, shortest_jump_frames

_SECONDS_BACK = (0.0, 2.0, 10.0)
"""How long before the wanted frame to look for a key frame; tried in turn before decoding from the start."""
_LOOSE_CODECS = frozenset({"mpeg4", "msmpeg4v2", "msmpeg4", "wmv1", "wmv2", "wmv3", "vc1", "h263", "flv"})
"""Codecs in which a packet without a frame is normal, such as packed B-frames in AVI."""
_PROGRESSIVE = 1
_REGULAR_FRAMES = 8
"""Frames at constant rate after which a jump in time is worth a warning."""
_RATE_TOLERANCE = 0.1
"""Of a frame's duration."""


@dataclass(frozen=True, slots=True)
class Located:
    """A decoded frame with its place in the source.

    Attributes:
        raw: The PyAV frame.
        index: 0-based index in the source.
        seconds: Presentation time, 0 for frame 0; later than that of the frame before.
        missing: Frames right before it that could not be decoded.
    """

    raw: Any
    index: int
    seconds: float
    missing: int


class VideoReader:
    """Frames of a video in order, with their places, from the start or from a position.

    Args:
        info: From :func:`stages.decode.probe.probe_video`.
        warn: Called with a line for the user.
    """

    def __init__(self, info: VideoInfo, warn: Callable[[str], None] = lambda line: None) -> None:
        self.info = info
        self.frames_concealed = 0
        self._warn = warn
        self._frame_seconds = float(1 / info.frame_rate)
        self._single_thread = False
        self._wrong_times = 0
        self._regular_frames = 0
        self._start_seconds = 0.0
        self._session: Session | None = None
        self._forget_position()

    @property
    def last_index(self) -> int:
        """Index of the last frame; before the first one that of the frame before it."""
        return self._index

    def close(self) -> None:
        """Close the file; the next :meth:`frames` opens it again at the same position."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def frames(self, start_seconds: float = 0.0) -> Iterator[Located]:
        """Frames from the first at or after ``start_seconds``, or after the position of :meth:`restore`."""
        self._start_seconds = start_seconds
        if self._session is None and not self._reopen():
            return
        while (located := self._next()) is not None:
            if located.seconds >= start_seconds - 1e-9:
                in_range = int((located.seconds - start_seconds) / self._frame_seconds + 1e-6)
                self.frames_concealed += located.raw.is_corrupt
                yield replace(located, missing=min(located.missing, max(0, in_range)))

    def first_index(self, start_seconds: float) -> int:
        """Index of the first frame at or after ``start_seconds``."""
        if start_seconds <= 0:
            return 0
        with closing(Session(self.info, single_thread=True)) as session:
            exact = not _is_loose(session) and not has_guessed_times(session.container)
        found = find_start(self.info, start_seconds) if exact else None
        if found is not None:
            return found.index
        with closing(VideoReader(self.info)) as reader:
            first = next(reader.frames(start_seconds), None)
        return 0 if first is None else first.index

    def missing_at_end(self) -> tuple[int, bool]:
        """After the last frame: how many frames are missing there, and whether the file lacks its end."""
        if self._session is None:
            return 0, False
        return find_missing_end(self.info, self._session, self._index, self._last_packet_index(self._session))

    def state(self) -> State:
        """The position after the last frame."""
        return {
            "index": self._index,
            "seconds": self._seconds,
            "pts": None if self._raw is None else self._raw.pts,
            "checksum": None if self._raw is None else _checksum(self._raw),
            "single_thread": self._single_thread,
            "wrong_times": self._wrong_times,
            "regular_frames": self._regular_frames,
            "frames_concealed": self.frames_concealed,
        }

    def restore(self, state: State) -> None:
        """Go to the position of an earlier :meth:`state`; the next frame is the one that followed then."""
        self.close()
        self._forget_position()
        self._single_thread = state["single_thread"]
        if state["checksum"] is not None:
            self._reach(state["index"], state["seconds"], state["pts"], state["checksum"])
        self._single_thread = state["single_thread"]
        self._wrong_times, self._regular_frames = state["wrong_times"], state["regular_frames"]
        self.frames_concealed = state["frames_concealed"]

    def _forget_position(self) -> None:
        self._index, self._seconds = -1, -1.0
        self._raw: Any | None = None
        self._shift: int | None = None
        self._start_pts = self.info.start_pts
        self._trouble, self._errors, self._lost = 0, 0, 0

    def _open(self, seek_pts: int | None = None) -> Session:
        self.close()
        self._session = Session(self.info, single_thread=self._single_thread, seek_pts=seek_pts)
        self._forget_position()
        return self._session

    def _next(self) -> Located | None:
        """The next frame. At the first damage, its position is reached again with one thread."""
        assert self._session is not None
        decoded = self._session.next()
        if not self._single_thread and self._looks_damaged(decoded):
            self._continue_single_threaded()
            return self._next() if self._session is not None else None
        if decoded is None:
            return None
        located = self._locate(decoded)
        self._check_regularity(located)
        self._take_position(located, decoded)
        return located

    def _take_position(self, located: Located, decoded: Decoded) -> None:
        assert self._session is not None
        self._index, self._seconds, self._raw = located.index, located.seconds, located.raw
        self._trouble, self._errors = decoded.trouble, decoded.errors
        if decoded.place is not None:
            self._lost = decoded.place.lost
        self._session.timeline.forget(located.index + (self._shift or 0))

    def _check_regularity(self, located: Located) -> None:
        """Warn where the time of a stream of constant rate jumps by whole frames, and nothing else shows why."""
        frames = (located.seconds - self._seconds) / self._frame_seconds
        if self._index < 0 or abs(frames - 1) < _RATE_TOLERANCE:
            self._regular_frames += 1
            return
        is_whole = abs(frames - round(frames)) < _RATE_TOLERANCE
        assert self._session is not None
        shortest = shortest_jump_frames(self._session.container)
        if frames > shortest and is_whole and not located.missing and self._regular_frames >= _REGULAR_FRAMES:
            self._warn(
                f"{self.info.path}: the time jumps by {round(frames)} frames after frame {self._index}; "
                "frames may be missing in the file"
            )
        self._regular_frames = 0

    def _looks_damaged(self, decoded: Decoded | None) -> bool:
        assert self._session is not None
        if self._session.trouble > 0:
            return True
        if decoded is None:
            return self._last_packet_index(self._session) > self._index
        if decoded.raw.is_corrupt:
            return True
        return (
            self._shift is not None
            and decoded.place is not None
            and decoded.place.index - self._shift > self._index + 1
        )

    def _continue_single_threaded(self) -> None:
        self._single_thread = True
        self._reopen()

    def _reopen(self) -> bool:
        """Open the file where it was left; False if there is no frame to read."""
        if self._raw is None:
            return self._open_at_start()
        self._reach(self._index, self._seconds, self._raw.pts, _checksum(self._raw))
        return True

    def _open_at_start(self) -> bool:
        """Open where ``start_seconds`` wants it, before the first frame; False if there is none."""
        session = self._open()
        if self._start_seconds <= 0 or self._single_thread:
            return True
        if _is_loose(session) or has_guessed_times(session.container):
            return True
        first = find_start(self.info, self._start_seconds)
        if first is None:
            return True
        if first.pts is None:
            self.close()
            return False
        for seconds in _SECONDS_BACK:
            decoded = self._decode_to(first.pts, seconds)
            if decoded is None:
                continue
            assert self._session is not None
            place = self._session.place_of(first.pts)
            if place is not None:
                self._shift = place.index - first.index
                self._index = first.index - 1
                self._session.push_back(decoded)
                return True
        self._open()
        return True

    def _reach(self, index: int, seconds: float, pts: int | None, checksum: int) -> None:
        """Go to the position right after a known frame: from a key frame before it, or else from the start."""
        for seconds_back in _SECONDS_BACK if pts is not None and self._may_seek() else ():
            assert pts is not None
            decoded = self._decode_to(pts, seconds_back)
            if decoded is not None and decoded.raw.pts == pts and self._is_position(decoded, index, checksum):
                self._take_position(Located(decoded.raw, index, seconds, 0), decoded)
                return
        self._open()
        while self._index < index and self._next() is not None:
            pass

    def _may_seek(self) -> bool:
        """Whether to go to a key frame. Not after damage: what decoders fill in depends on all frames before."""
        if self._single_thread:
            return False
        with closing(open_video(self.info.path)) as container:
            return not has_guessed_times(container)

    def _is_position(self, decoded: Decoded, index: int, checksum: int) -> bool:
        """Whether this is the known frame, bit for bit; if so, its index is taken over."""
        assert self._session is not None
        if decoded.place is None or _checksum(decoded.raw) != checksum:
            return False
        self._shift = decoded.place.index - index
        return True

    def _decode_to(self, pts: int, seconds_back: float) -> Decoded | None:
        """The first frame at or after ``pts``, decoded from a key frame; None if that does not lead to it."""
        session = self._open(pts - int(seconds_back / self.info.time_base))
        decoded = session.next()
        if decoded is None or decoded.raw.pts is None or session.key_pts is None:
            return None
        if max(decoded.raw.pts, session.key_pts) > pts:
            return None
        while decoded is not None and decoded.raw.pts is not None and decoded.raw.pts < pts:
            decoded = session.next()
        if decoded is None or decoded.raw.pts is None:
            return None
        return None if session.trouble else decoded

    def _locate(self, decoded: Decoded) -> Located:
        """Index and time of a frame, from its place on the timeline and the frames before it."""
        if self._shift is None:
            self._begin(decoded)
        following = self._index + 1
        index = following
        if decoded.place is not None and self._shift is not None:
            assert self._session is not None
            index = decoded.place.index - self._shift
            if index > following and decoded.errors == self._errors and _is_loose(self._session):
                index = following + decoded.place.lost - self._lost
                self._shift = decoded.place.index - index
            index = max(index, following)
        elif decoded.raw.pts is None:
            index += decoded.errors - self._errors
        return Located(decoded.raw, index, self._time_of(decoded, index), index - following)

    def _begin(self, decoded: Decoded) -> None:
        """Decide which packet is frame 0: the first one, or without damage the first that was decoded.

        Streams that were cut in the middle of a group of pictures begin with packets that refer to missing ones.
        """
        self._shift = 0 if decoded.place is None or decoded.trouble else decoded.place.index

    def _time_of(self, decoded: Decoded, index: int) -> float:
        pts = decoded.raw.pts
        if pts is None:
            return index * self._frame_seconds
        seconds = float((pts - self._start_pts) * self.info.time_base)
        if seconds > self._seconds and (decoded.place is not None or self._index < 0):
            return seconds
        self._wrong_times += 1
        if self._wrong_times > 1:  # FFmpeg gives the last picture of some whole MPEG files the time before it
            self._warn(f"{self.info.path}: presentation times that are wrong or do not increase were replaced")
        return self._seconds + (index - self._index) * self._frame_seconds

    def _last_packet_index(self, session: Session) -> int:
        """Index of the last packet that was read and should have given a frame."""
        if _is_loose(session) and session.errors == self._errors:
            return self._index
        if session.timeline.last is None:
            return session.counted_packets - 1
        return session.timeline.last.index - (self._shift or 0)


def _is_loose(session: Session) -> bool:
    """Whether a packet may hold no frame of its own: in some codecs, and where fields are packets."""
    codec = session.stream.codec_context
    return codec.name in _LOOSE_CODECS or codec.field_order > _PROGRESSIVE


def _checksum(raw: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(raw.to_ndarray(format="rgb24")).data)
