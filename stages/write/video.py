"""The annotated video: written in segments that are playable at any moment, joined without encoding again.

A segment is a fragmented MP4 that starts with a key frame. Segments end where the run says (at the marks of
:mod:`pipeline.core.checkpoint`), so a resumed run goes on with a new segment, and the joined file is the same byte
for byte. There are no B-frames: packets are in the order of presentation, and joining only shifts their times.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from pipeline.core.files import whole_file
from pipeline.core.threads import current_pools
from stages.write.config import WriteConfig

TIME_BASE = Fraction(1, 90_000)
_HD_ROWS = 576
_BT709, _SMPTE170M = 1, 6  # values of ITU-T H.273 for primaries, transfer and matrix alike
_FRAGMENTED = "+frag_keyframe+empty_moov+default_base_moof"
_FRAGMENT_MICROSECONDS = 1_000_000


class SegmentedVideo:
    """Encodes pictures into numbered segments in a folder.

    Args:
        folder: Where the segments lie; made with the first one.
        config: Quality and speed of the encoder.
        frame_rate: Nominal frame rate, which the encoder's rate control uses.
    """

    def __init__(self, folder: Path, config: WriteConfig, frame_rate: Fraction) -> None:
        self.folder = folder
        self.segments = 0
        self._config = config
        self._rate = frame_rate
        self._reformatter = VideoReformatter()
        self._container: Any = None
        self._stream: Any = None
        self._first_pts = 0
        self._last_pts = -1

    def write(self, image: npt.NDArray[np.uint8], seconds: float) -> None:
        """Append one picture.

        Args:
            image: uint8 ``(H, W, 3)`` RGB; an odd side is padded by one row or column.
            seconds: Presentation time, counted from the first picture of the video.
        """
        image = _even(image)
        # Presentation times must rise: two frames of the same time would end the encoder.
        pts = max(round(seconds / TIME_BASE), self._last_pts + 1)
        if self._container is None:
            self._begin(image.shape[1], image.shape[0], pts)
        frame = self._yuv(image)
        frame.pts, frame.time_base = pts - self._first_pts, TIME_BASE
        self._last_pts = pts
        self._container.mux(self._stream.encode(frame))

    def end_segment(self) -> None:
        """Close the segment that is open, if any."""
        container, self._container = self._container, None
        if container is None:
            return
        try:
            container.mux(self._stream.encode(None))
        finally:
            container.close()
        self.segments += 1

    def state(self) -> dict[str, Any]:
        """Where the next segment goes on."""
        return {"segments": self.segments, "last_pts": self._last_pts}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on after the segments of ``state``; later ones, which no checkpoint knows, are removed."""
        self.segments, self._last_pts = state["segments"], state["last_pts"]
        for path in segment_files(self.folder)[self.segments :]:
            path.unlink()

    def clear(self) -> None:
        """Remove all segments."""
        self.restore({"segments": 0, "last_pts": -1})

    def _begin(self, width: int, height: int, pts: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # The name holds the segment's number and its place in time.
        path = self.folder / f"{self.segments:06d}-{pts:013d}.mp4"
        options = {"movflags": _FRAGMENTED, "frag_duration": str(_FRAGMENT_MICROSECONDS)}
        self._container = av.open(str(path), "w", format="mp4", options=options)
        encoder = {"crf": str(self._config.crf), "preset": self._config.encoder_preset, "bf": "0"}
        self._stream = self._container.add_stream("libx264", rate=self._rate, options=encoder)
        context = self._stream.codec_context
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base = self._stream.time_base = TIME_BASE
        context.thread_count = current_pools().encoder
        high = height >= _HD_ROWS
        context.colorspace = context.color_trc = _BT709 if high else _SMPTE170M
        context.color_primaries = _BT709 if high else _SMPTE170M
        context.color_range = int(ColorRange.MPEG)
        self._first_pts = pts

    def _yuv(self, image: npt.NDArray[np.uint8]) -> av.VideoFrame:
        """The picture as 4:2:0 in the matrix that the stream is tagged with."""
        matrix = Colorspace.ITU709 if image.shape[0] >= _HD_ROWS else Colorspace.ITU601
        return self._reformatter.reformat(
            av.VideoFrame.from_ndarray(image, format="rgb24"),
            format="yuv420p",
            dst_colorspace=matrix,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )


@contextmanager
def whole_video(path: Path, config: WriteConfig, frame_rate: Fraction) -> Iterator[SegmentedVideo]:
    """A video that appears under its name when the block ends, with what was written until then.

    Args:
        path: The video, an existing one is replaced; missing folders are made.
        config: Quality and speed of the encoder.
        frame_rate: Nominal frame rate; the last frame is shown for one period of it.

    Raises:
        OutputError: The video cannot be written.
    """
    folder = path.with_name(f".{path.name}.segments")
    shutil.rmtree(folder, ignore_errors=True)
    video = SegmentedVideo(folder, config, frame_rate)
    try:
        yield video
    finally:
        try:
            video.end_segment()
            if segments := segment_files(folder):
                join_segments(segments, path, float(1 / frame_rate))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def segment_files(folder: Path) -> list[Path]:
    """The segments in a folder, in order."""
    return sorted(folder.glob("*-*.mp4")) if folder.is_dir() else []


def join_segments(segments: list[Path], output: Path, last_duration_seconds: float) -> None:
    """Write the segments as one MP4 that starts playing before it is loaded whole; nothing is encoded again.

    A segment that was cut off (by a power loss, say) gives the frames that are whole.

    Args:
        segments: From :func:`segment_files`.
        output: The video; appears whole or not at all.
        last_duration_seconds: How long the last frame is shown.

    Raises:
        OutputError: The video cannot be written.
    """
    parts = [(path, int(path.stem.split("-")[1])) for path in segments]
    join_videos(parts, output, max(1, round(last_duration_seconds / TIME_BASE)))


def join_videos(parts: list[tuple[Path, int]], output: Path, last_duration: int | None = None) -> None:
    """Write videos of one encoder's settings after each other as one MP4; nothing is encoded again.

    Args:
        parts: The videos, and the time at which each begins in units of :data:`TIME_BASE`.
        output: The video; appears whole or not at all.
        last_duration: How long the last frame is shown; None keeps its duration.

    Raises:
        OutputError: The video cannot be written.
    """
    with (
        whole_file(output) as partial,
        av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as target,
    ):
        stream: Any = None
        waiting: Any = None
        for packet, pts in _packets(parts):
            if stream is None:
                stream = target.add_stream_from_template(packet.stream)
                stream.time_base = TIME_BASE
            packet.stream = stream
            packet.pts = packet.dts = pts
            packet.time_base = TIME_BASE
            if waiting is not None:
                waiting.duration = pts - waiting.pts
                target.mux(waiting)
            waiting = packet
        if waiting is not None:
            waiting.duration = last_duration or waiting.duration
            target.mux(waiting)


def _packets(parts: list[tuple[Path, int]]) -> Iterator[tuple[Any, int]]:
    """Every packet of the videos with its presentation time in :data:`TIME_BASE` units of the whole video."""
    for path, start in parts:
        try:
            with av.open(str(path)) as source:
                stream = source.streams.video[0]
                for packet in source.demux(stream):
                    if packet.pts is not None and packet.size:
                        yield packet, start + round(packet.pts * packet.time_base / TIME_BASE)
        except (av.error.FFmpegError, IndexError):
            continue


def _even(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Repeat the last row or column where a side is odd: 4:2:0 video needs even sides."""
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(image)
