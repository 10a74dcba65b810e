"""Masks as a video for editing: a black-and-white matte, or the input with the masks as its alpha channel.

The suffix says which: ``.mp4`` is a matte in H.264, ``.mov`` ProRes 4444 with alpha, ``.webm`` VP9 with alpha.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from pipeline.core.errors import ConfigError
from pipeline.core.files import whole_file
from pipeline.export.labeled_run import LabeledRun
from pipeline.export.source_frames import source_frames
from pipeline.formats.palette import read_indexed_png

_TIME_BASE = Fraction(1, 90_000)


@dataclass(frozen=True, slots=True)
class _Encoding:
    """How one kind of file is encoded."""

    codec: str
    pixel_format: str
    has_alpha: bool
    options: dict[str, str]


ENCODINGS: dict[str, _Encoding] = {
    ".mp4": _Encoding("libx264", "yuv420p", has_alpha=False, options={"crf": "8", "preset": "fast"}),
    ".mov": _Encoding(
        "prores_ks", "yuva444p10le", has_alpha=True, options={"profile": "4444", "alpha_bits": "16"}
    ),
    ".webm": _Encoding(
        "libvpx-vp9",
        "yuva420p",
        has_alpha=True,
        options={"crf": "20", "b": "0", "auto-alt-ref": "0", "deadline": "good", "cpu-used": "5"},
    ),
}
"""Encodings by suffix of the file."""


def write_mask_video(
    run: LabeledRun, path: Path, *, source: Path | None = None, object_ids: Sequence[int] = ()
) -> None:
    """Write the video; times are those of the annotated video.

    Args:
        run: The run.
        path: The file; its suffix is one of :data:`ENCODINGS`.
        source: Where the run's input is now, for the colors of a video with alpha; by default where it was.
        object_ids: Only these objects; all without any.

    Raises:
        ConfigError: Another suffix, or an object that does not exist.
        OutputError: The input is not there, or the file cannot be written.
    """
    encoding = ENCODINGS.get(path.suffix.lower())
    if encoding is None:
        raise ConfigError(f"{path}: a mask video ends in {', '.join(ENCODINGS)}")
    if unknown := [number for number in object_ids if number not in run.object_ids]:
        raise ConfigError(f"--objects {unknown[0]}: there is no such object; objects: {run.object_ids}")
    wanted = list(object_ids) or run.object_ids
    images = _with_alpha(run, wanted, source) if encoding.has_alpha else _mattes(run, wanted)
    options = {"movflags": "+faststart"} if path.suffix.lower() == ".mp4" else {}
    with whole_file(path) as partial, av.open(str(partial), "w", format=_container(path), options=options) as out:
        _encode(out, encoding, images, _seconds(run), run.run.frame_rate)


def _mattes(run: LabeledRun, object_ids: Sequence[int]) -> Iterator[npt.NDArray[np.uint8]]:
    """uint8 ``(H, W, 3)``: white where an object is."""
    for _, mask in run.run.read_masks():
        inside = np.isin(mask, object_ids)
        yield np.repeat((inside * np.uint8(255))[..., None], 3, axis=2)


def _with_alpha(
    run: LabeledRun, object_ids: Sequence[int], source: Path | None
) -> Iterator[npt.NDArray[np.uint8]]:
    """uint8 ``(H, W, 4)``: the input's color, opaque where an object is."""
    for frame in source_frames(run, source):
        inside = np.isin(read_indexed_png(run.paths[frame.index]), object_ids)
        yield np.dstack([frame.image, inside * np.uint8(255)])


def _seconds(run: LabeledRun) -> list[float]:
    """Times of the frames with masks, from 0."""
    times = dict(zip(run.run.frames(), run.run.video_seconds(), strict=False))
    rate = float(run.run.frame_rate)
    first = next(iter(run.paths))
    if all(index in times for index in run.paths):
        return [times[index] - times[first] for index in run.paths]
    return [(index - first) / rate for index in run.paths]


def _encode(
    out: Any,
    encoding: _Encoding,
    images: Iterator[npt.NDArray[np.uint8]],
    seconds: list[float],
    rate: Fraction,
) -> None:
    stream: Any = None
    for image, time in zip(images, seconds, strict=False):
        even = np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge")
        if stream is None:
            stream = out.add_stream(encoding.codec, rate=rate, options=encoding.options)
            stream.height, stream.width = even.shape[:2]
            stream.pix_fmt = encoding.pixel_format
            stream.codec_context.time_base = stream.time_base = _TIME_BASE
        picture = av.VideoFrame.from_ndarray(
            np.ascontiguousarray(even), format="rgba" if encoding.has_alpha else "rgb24"
        )
        picture.pts, picture.time_base = round(time / _TIME_BASE), _TIME_BASE
        out.mux(stream.encode(picture))
    if stream is not None:
        out.mux(stream.encode(None))


def _container(path: Path) -> str:
    return {".mp4": "mp4", ".mov": "mov", ".webm": "webm"}[path.suffix.lower()]
