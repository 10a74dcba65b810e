"""Video files through FFmpeg: facts before decoding, frames as RGB, and where a file is cut short.

PyAV is the default reader; decord is another one for the same frames. Both give :class:`Frame` records in
presentation order with exact times. A frame's index is its position in the whole file, also when reading starts
later: the packets before the start are counted without decoding them.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import cv2
import numpy as np
import numpy.typing as npt

from pipeline.core.errors import MediaError
from pipeline.core.records import Frame, VideoInfo

_DEFAULT_RATE = Fraction(25)
_DURATION_TOLERANCE_SECONDS = 0.5


@dataclass(slots=True)
class ReadState:
    """What a reader found out while reading; filled in as it goes.

    Attributes:
        broken: Where and how the input broke off, or None while it is whole.
        warnings: One line each.
    """

    broken: str | None = None
    warnings: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        """Add a warning once."""
        if message not in self.warnings:
            self.warnings.append(message)


def probe_video(path: Path) -> VideoInfo:
    """Facts about a video file; decodes its first frame to be sure that there is one.

    Raises:
        MediaError: Not a video FFmpeg can read, no video stream, or no frame in it.
    """
    with _open(path) as container:
        stream = _video_stream(container, path)
        try:
            first = next(container.decode(stream), None)
        except av.error.FFmpegError as error:
            raise MediaError(f"{path}: its first frame cannot be decoded ({_reason(error)})") from error
        if first is None:
            raise MediaError(f"{path}: the video stream holds no frames")
        height, width = first.height, first.width
        if _quarter_turns(first) % 2:
            height, width = width, height
        return VideoInfo(
            path=path,
            height=height,
            width=width,
            frame_rate=Fraction(stream.average_rate or stream.guessed_rate or _DEFAULT_RATE),
            num_frames=stream.frames or None,
            time_base=Fraction(stream.time_base or first.time_base),
        )


def read_video(
    info: VideoInfo, state: ReadState, *, start_seconds: float = 0.0, every: int = 1
) -> Iterator[Frame]:
    """Frames of a video with PyAV, in order, from the first at or after ``start_seconds``.

    Args:
        info: From :func:`probe_video`.
        state: Gets ``broken`` when the file ends before its time; the frames until then are yielded.
        start_seconds: Presentation time, counted from the file's first frame.
        every: Yield only frames whose index is a multiple of this, counted from the first one yielded.
    """
    with _open(info.path) as container:
        stream = _video_stream(container, info.path)
        stream.thread_type = "AUTO"
        known_pts = _packet_times(info.path, start_seconds) if start_seconds > 0 else []
        origin = _start_pts(stream)
        if start_seconds > 0:
            container.seek(origin + int(start_seconds / info.time_base), stream=stream, backward=True)
        decoded, last_seconds, kept = 0, -1.0, 0
        decoder = container.decode(stream)
        while True:
            try:
                raw = next(decoder)
            except (StopIteration, av.error.EOFError):
                break
            except av.error.FFmpegError as error:
                state.broken = f"{info.path}: breaks off after frame {decoded - 1}: {_reason(error)}"
                return
            pts_seconds = _seconds(raw, origin, info, decoded)
            if decoded == 0 and known_pts and raw.pts is not None:
                decoded = bisect.bisect_left(known_pts, raw.pts)
            index = decoded
            decoded += 1
            last_seconds = pts_seconds
            if pts_seconds < start_seconds - 1e-9:
                continue
            if kept % every == 0:
                yield Frame(_to_rgb(raw, info, state), index, pts_seconds)
            kept += 1
        state.broken = _missing_end(stream, info, decoded, last_seconds)


def first_frame_index(info: VideoInfo, start_seconds: float) -> int:
    """Index of the first frame at or after ``start_seconds``, found without decoding."""
    if start_seconds <= 0:
        return 0
    with _open(info.path) as container:
        origin = _start_pts(_video_stream(container, info.path))
    start_pts = origin + (start_seconds - 1e-9) / float(info.time_base)
    return bisect.bisect_left(_packet_times(info.path, start_seconds), start_pts)


def read_video_decord(
    info: VideoInfo, state: ReadState, *, start_seconds: float = 0.0, every: int = 1
) -> Iterator[Frame]:
    """The same frames with decord; for files that it indexes faster than FFmpeg's demuxer reads them.

    Raises:
        MediaError: decord is not installed or cannot open the file.
    """
    try:
        import decord
    except ImportError as error:
        raise MediaError("decode.backend 'decord' needs the package decord; use 'pyav'") from error
    try:
        reader = decord.VideoReader(str(info.path))
    except (decord.DECORDError, RuntimeError) as error:
        raise MediaError(f"{info.path}: decord cannot open it; try decode.backend 'pyav'") from error
    num_frames = len(reader)
    times = np.asarray(reader.get_frame_timestamp(list(range(num_frames))))[:, 0]
    times = times - times[0]
    first = int(np.searchsorted(times, start_seconds - 1e-9))
    for index in range(first, num_frames, every):
        try:
            image = reader[index].asnumpy()
        except (decord.DECORDError, RuntimeError):
            state.broken = f"{info.path}: breaks off after frame {index - 1}: decord cannot decode the next"
            return
        yield Frame(_fit(image, info, state), index, float(times[index]))
    if info.num_frames and num_frames < info.num_frames:
        state.broken = f"{info.path}: breaks off after frame {num_frames - 1} of {info.num_frames}"


def _open(path: Path) -> Any:
    try:
        return av.open(str(path))
    except av.error.FFmpegError as error:
        raise MediaError(f"{path}: not a video that FFmpeg can read ({_reason(error)})") from error
    except OSError as error:
        raise MediaError(f"{path}: cannot be opened ({error.strerror})") from error


def _video_stream(container: Any, path: Path) -> Any:
    streams = [s for s in container.streams.video if not _is_cover_picture(s)]
    if not streams:
        kinds = sorted({s.type for s in container.streams}) or ["nothing"]
        raise MediaError(f"{path}: has no video stream (it holds: {', '.join(kinds)})")
    return streams[0]


def _is_cover_picture(stream: Any) -> bool:
    return bool(int(stream.disposition) & int(av.stream.Disposition.attached_pic))


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).strip().rstrip(".")


def _start_pts(stream: Any) -> int:
    return int(stream.start_time or 0)


def _seconds(raw: Any, origin: int, info: VideoInfo, decoded: int) -> float:
    if raw.pts is None:
        return float(decoded / info.frame_rate)
    return float((raw.pts - origin) * info.time_base)


def _packet_times(path: Path, start_seconds: float) -> list[int]:
    """Sorted presentation times of the packets up to a little after ``start_seconds``, undecoded."""
    times: list[int] = []
    with _open(path) as container:
        stream = _video_stream(container, path)
        # B-frames come out of order by a few frames; two seconds are more than any reorder buffer holds.
        limit = _start_pts(stream) + (start_seconds + 2.0) / float(stream.time_base)
        for packet in container.demux(stream):
            if packet.pts is not None:
                times.append(packet.pts)
            if packet.dts is not None and packet.dts > limit:
                break
    return sorted(times)


def _quarter_turns(raw: Any) -> int:
    """Counter-clockwise quarter turns that bring the frame upright, from its display matrix."""
    turns: int = round(raw.rotation / 90) % 4
    return turns


def _to_rgb(raw: Any, info: VideoInfo, state: ReadState) -> npt.NDArray[np.uint8]:
    """8-bit RGB, upright, at the video's size; a change of size inside the video is scaled away."""
    image: npt.NDArray[np.uint8] = raw.to_ndarray(format="rgb24")
    turns = _quarter_turns(raw)
    if turns:
        image = np.rot90(image, turns)
    return _fit(image, info, state)


def _fit(image: npt.NDArray[np.uint8], info: VideoInfo, state: ReadState) -> npt.NDArray[np.uint8]:
    if image.shape[:2] != info.image_hw:
        state.warn(
            f"{info.path}: changes its size to {image.shape[1]}x{image.shape[0]}; scaled to the first frame's"
        )
        image = cv2.resize(image, (info.width, info.height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image)


def _missing_end(stream: Any, info: VideoInfo, decoded: int, last_seconds: float) -> str | None:
    """Tell a file that was cut short, which FFmpeg reads to its last whole packet without an error."""
    if info.num_frames:
        # Edit lists may hide a few frames at the ends, so a handful missing is no break.
        if decoded < info.num_frames - max(2, info.num_frames // 50):
            return f"{info.path}: breaks off after frame {decoded - 1} of {info.num_frames}"
        return None
    promised = _promised_seconds(stream)
    if promised is not None and last_seconds + 1 / info.frame_rate < promised - _DURATION_TOLERANCE_SECONDS:
        return f"{info.path}: breaks off at {last_seconds:.2f} s of {promised:.2f} s, after frame {decoded - 1}"
    return None


def _promised_seconds(stream: Any) -> float | None:
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    tag = stream.metadata.get("DURATION", "")
    parts = tag.split(":")
    try:
        return int(parts[0]) * 3600 + int(parts[1]) * 60 + float(parts[2]) if len(parts) == 3 else None
    except ValueError:
        return None


FrameReader = Callable[..., Iterator[Frame]]
READERS: dict[str, FrameReader] = {"pyav": read_video, "decord": read_video_decord}
"""The readers by the name of ``decode.backend``."""
