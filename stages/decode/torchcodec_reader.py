"""The frames of a video with torchcodec, on the CPU or by a card's decoder (NVDEC).

Times and, on the CPU, pixels are those of PyAV: torchcodec's times are taken back to the container's ticks, from
which the same fractions are made, and both convert colors with FFmpeg. On a card the frames stay there beside
their copies on the host, so that extract need not upload them.

torchcodec knows nothing of damage: reading ends at the first frame it cannot decode. Files without presentation
times, such as raw H.264, cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from pipeline.core.device_stream import streams_of
from pipeline.core.errors import ConfigError, MediaError
from pipeline.core.host_copy import fetch
from pipeline.core.records import VideoInfo
from pipeline.formats.video import fit_to_video
from stages.decode.indexed_frame import IndexedFrame

_ERRORS = (RuntimeError, IndexError, ValueError, OSError)


def read_with_torchcodec(
    info: VideoInfo,
    first_index: int,
    start_seconds: float,
    warn: Callable[[str], None],
    device: str = "cpu",
) -> Iterator[IndexedFrame]:
    """Frames from ``first_index`` and ``start_seconds`` on, whichever is later.

    Args:
        info: Of the file.
        first_index: 0-based.
        start_seconds: 0 is the time of the first frame.
        warn: Called with a line for the user.
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: torchcodec cannot be imported.
        MediaError: It cannot open the file.
    """
    decoder = _open(_video_decoder(), info, device)
    skipped = _frames_before_start(decoder, info)
    count = len(decoder) - skipped
    for index in range(_first(decoder, info, skipped, first_index, start_seconds), count):
        try:
            found = decoder.get_frame_at(index + skipped)
        except _ERRORS:
            yield IndexedFrame(None, index, index / float(info.frame_rate))
            return
        seconds = _seconds(found, info)
        image, on_device = _on_host(found.data)
        image = fit_to_video(image, info, warn)
        if on_device is not None and tuple(on_device.shape[:2]) != info.image_hw:
            on_device = None
        yield IndexedFrame(image, index, seconds, float(found.duration_seconds) or None, on_device)
    if info.num_frames and count < info.num_frames:
        yield IndexedFrame(None, max(count, first_index), count / float(info.frame_rate))


def require_torchcodec(device: str) -> None:
    """Check that frames can be read, before anything is opened.

    Raises:
        ConfigError: torchcodec is not installed or does not load, or there is no such card.
    """
    _video_decoder()
    index = torch.device(device).index or 0
    if device != "cpu" and index >= torch.cuda.device_count():
        raise ConfigError(
            f"decode.device '{device}': there are {torch.cuda.device_count()} CUDA devices here; set it to cpu"
        )


def _video_decoder() -> Any:
    try:
        from torchcodec.decoders import VideoDecoder
    except ImportError as error:
        raise ConfigError(
            "decode.backend 'torchcodec' needs the package torchcodec: pip install liftstream[torchcodec], or set "
            "decode.backend to pyav"
        ) from error
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            "decode.backend 'torchcodec': the installed release does not load beside torch "
            f"{torch.__version__} and this machine's FFmpeg; install the one for this torch (0.12 for torch 2.13 "
            "on the CPU) and FFmpeg 4 to 8 with shared libraries, or set decode.backend to pyav"
        ) from error
    return VideoDecoder


def _open(decoder: Any, info: VideoInfo, device: str) -> Any:
    try:
        return decoder(
            f"file:{info.path}",  # a name like a:b.mp4 is a file
            stream_index=info.stream_index,
            dimension_order="NHWC",
            num_ffmpeg_threads=0 if device == "cpu" else 1,
            device=device,
            seek_mode="exact",
        )
    except _ERRORS as error:
        raise MediaError(f"{info.path}: torchcodec cannot open it; use decode.backend 'pyav'") from error


def _seconds(found: Any, info: VideoInfo) -> float:
    """The time PyAV gives the frame: its ticks, exact, from the first frame on."""
    ticks = round(Fraction(float(found.pts_seconds)) / info.time_base)
    return float((ticks - info.start_pts) * info.time_base)


def _frames_before_start(decoder: Any, info: VideoInfo) -> int:
    """Frames before the one that is frame 0: what refers to missing data at the start of a cut file."""
    count = 0
    try:
        while count < len(decoder) and _seconds(decoder.get_frame_at(count), info) < 0:
            count += 1
    except _ERRORS:
        return count
    return count


def _first(decoder: Any, info: VideoInfo, skipped: int, first_index: int, start_seconds: float) -> int:
    """Index of the first frame at or after ``start_seconds``, at least ``first_index``; found by halving."""
    low, high = 0, len(decoder) - skipped
    if start_seconds <= 0:
        return first_index
    while low < high:
        middle = (low + high) // 2
        try:
            before = _seconds(decoder.get_frame_at(middle + skipped), info) < start_seconds - 1e-9
        except _ERRORS:
            before = False
        low, high = (middle + 1, high) if before else (low, middle)
    return max(first_index, low)


def _on_host(data: Tensor) -> tuple[Any, Tensor | None]:
    """A frame ``(H, W, 3)`` as an array, and itself where it is on a card."""
    if data.is_cpu:
        return data.numpy(), None
    return fetch(streams_of(data.device), [data])[0], data
