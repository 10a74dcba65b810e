"""Facts about a video file, found without decoding more than its first frame."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.core.errors import MediaError
from pipeline.core.records import VideoInfo
from pipeline.formats.video import choose_stream, color_of, open_video, upright_hw
from pipeline.formats.video_structure import starts_damaged
from stages.decode.packets import PacketReader
from stages.decode.session import Session, timeline_for

_DEFAULT_RATE = Fraction(25)


@dataclass(frozen=True, slots=True)
class FirstFrame:
    """Where a range begins: its first frame's index, and its time, None if the range begins after the end."""

    index: int
    pts: int | None


def probe_video(path: Path, stream_index: int | None = None) -> VideoInfo:
    """Facts about a video file. Its first frame is decoded, past damage if necessary.

    Raises:
        MediaError: Not a video FFmpeg can read, no such stream, or no frame that can be decoded.
    """
    with closing(open_video(path)) as container:
        stream = choose_stream(container, path, stream_index)
        info = VideoInfo(
            path=path,
            height=1,
            width=1,
            frame_rate=_frame_rate(stream),
            num_frames=_num_frames(container, stream),
            time_base=Fraction(stream.time_base or 1 / _DEFAULT_RATE),
            stream_index=stream.index,
        )
    with closing(Session(info, single_thread=True)) as session:
        first = session.next()
        if first is None:
            raise MediaError(f"{path}: no frame of the video stream can be decoded")
        height, width = upright_hw(first.raw)
        start_pts = first.raw.pts if first.place is None or not first.trouble else session.timeline.first_pts
        return replace(info, height=height, width=width, start_pts=start_pts or 0, color=color_of(first.raw))


def start_is_damaged(path: Path) -> bool:
    """Whether data is missing at the start of the file, before the first frame that can be found."""
    with closing(open_video(path)) as container:
        return starts_damaged(path, container.format.name)


def find_start(info: VideoInfo, start_seconds: float) -> FirstFrame | None:
    """The first frame at or after ``start_seconds``, from the packets' times, without decoding.

    Returns:
        None if the stream has no times.
    """
    target = info.start_pts + math.ceil((start_seconds - 1e-9) / float(info.time_base))
    zero = 0
    with closing(open_video(info.path)) as container:
        stream = choose_stream(container, info.path, info.stream_index)
        timeline = timeline_for(info, container, stream)
        reader = PacketReader(container, stream)
        for item in reader:
            if not item.counts:
                continue
            if item.packet.pts is None:
                return None
            if timeline.last is None:
                timeline.lost_at_start = reader.lost_at_start
            timeline.add(item.packet.pts, suspect=item.suspect)
            first = timeline.place_of(info.start_pts)
            zero = zero if first is None else first.index
            if timeline.last is not None and timeline.last.pts >= target:
                break
            timeline.forget(-1 if timeline.last is None else timeline.last.index - 1)
        else:
            timeline.finish()
        found = timeline.first_from(target)
        if found is not None:
            return FirstFrame(found.index - zero, found.pts)
        return FirstFrame(0 if timeline.last is None else timeline.last.index + 1 - zero, None)


def _frame_rate(stream: Any) -> Fraction:
    rates = (stream.average_rate, stream.guessed_rate, _DEFAULT_RATE)
    return next(Fraction(rate) for rate in rates if rate and rate > 0)


def _num_frames(container: Any, stream: Any) -> int | None:
    """Frames the container promises, without those that an edit list discards."""
    if not stream.frames:
        return None
    if "mov" not in container.format.name.split(",") or len(stream.index_entries) < stream.frames:
        return int(stream.frames)
    return sum(not entry.is_discard for entry in stream.index_entries)
