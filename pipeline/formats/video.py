"""Opening video files with FFmpeg (PyAV), choosing the stream, and frames as upright 8-bit RGB."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import av.error
import cv2
import numpy as np
import numpy.typing as npt

from pipeline.core.errors import MediaError
from pipeline.core.records import Color, VideoInfo

_UNSPECIFIED_RANGE, _FULL_RANGE = 0, 2


def open_video(path: Path) -> Any:
    """Open a video file as a PyAV input container.

    Only files are read: no other protocol than ``file`` is allowed, so a playlist cannot name a URL, and a name
    like ``a:b.mp4`` is a file. Metadata in an unknown encoding is read with replacement characters.

    Raises:
        MediaError: Not a regular file, or not a video that FFmpeg can read.
    """
    if not path.is_file():
        raise MediaError(f"{path}: is not a regular file (a pipe, device or socket cannot be read as a video)")
    try:
        return av.open(f"file:{path}", metadata_errors="replace", container_options={"protocol_whitelist": "file"})
    except av.error.FFmpegError as error:
        raise MediaError(f"{path}: not a video that FFmpeg can read ({reason_of(error)})") from error
    except OSError as error:
        raise MediaError(f"{path}: cannot be opened ({error.strerror})") from error
    except ValueError as error:
        raise MediaError(f"{path}: not a video that FFmpeg can read ({error})") from error


def choose_stream(container: Any, path: Path, stream_index: int | None = None) -> Any:
    """The video stream to read.

    Args:
        container: From :func:`open_video`.
        path: For the error message.
        stream_index: The stream's index in the file; None takes the one FFmpeg considers best, except cover art.

    Raises:
        MediaError: There is no such video stream, or FFmpeg has no decoder for it.
    """
    videos = [stream for stream in container.streams.video if not _is_cover_picture(stream)]
    if not videos:
        kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
        raise MediaError(f"{path}: has no video stream (it has: {', '.join(kinds)})")
    if stream_index is not None:
        chosen = next((stream for stream in videos if stream.index == stream_index), None)
        if chosen is None:
            have = ", ".join(str(stream.index) for stream in videos)
            raise MediaError(f"{path}: stream {stream_index} is not a video stream; decode.stream can be {have}")
    else:
        best = container.streams.best("video")
        chosen = best if best in videos else videos[0]
    if chosen.codec_context is None:
        raise MediaError(f"{path}: FFmpeg has no decoder for its video stream")
    return chosen


def reason_of(error: Exception) -> str:
    """FFmpeg's text for an error, without the number."""
    return str(getattr(error, "strerror", None) or error).strip().rstrip(".")


def color_of(raw: Any) -> Color:
    """How a decoded frame encodes color."""
    value_range = int(raw.color_range)
    return Color(
        primaries=int(raw.color_primaries),
        transfer=int(raw.color_trc),
        matrix=int(raw.colorspace),
        full_range=None if value_range == _UNSPECIFIED_RANGE else value_range == _FULL_RANGE,
    )


def upright_hw(raw: Any) -> tuple[int, int]:
    """Height and width of a decoded frame after rotation."""
    return (raw.width, raw.height) if _quarter_turns(raw) % 2 else (raw.height, raw.width)


def to_rgb(raw: Any, info: VideoInfo, warn: Callable[[str], None]) -> npt.NDArray[np.uint8]:
    """8-bit RGB ``(H, W, 3)``, upright, at the video's size.

    The conversion uses the matrix and range of the frame; without them FFmpeg's default, BT.601 and limited range.
    Where the size changes inside the video, frames are scaled to the first one's size.
    """
    image: npt.NDArray[np.uint8] = raw.to_ndarray(format="rgb24")
    turns = _quarter_turns(raw)
    if turns:
        image = np.rot90(image, turns)
    return fit_to_video(image, info, warn)


def fit_to_video(
    image: npt.NDArray[np.uint8], info: VideoInfo, warn: Callable[[str], None]
) -> npt.NDArray[np.uint8]:
    """The image at the video's size, C-contiguous."""
    if image.shape[:2] != info.image_hw:
        size = f"{image.shape[1]}x{image.shape[0]}"
        warn(f"{info.path}: the size changes to {size}; scaled to the first frame's size")
        image = cv2.resize(image, (info.width, info.height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image)


def _is_cover_picture(stream: Any) -> bool:
    return bool(int(stream.disposition) & int(av.stream.Disposition.attached_pic))


def _quarter_turns(raw: Any) -> int:
    """Counter-clockwise quarter turns that bring the frame upright, from its display matrix."""
    turns: int = round(raw.rotation / 90) % 4
    return turns
