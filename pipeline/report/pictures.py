"""Pictures inside the page: thumbnails of frames, and all masks at a reduced size for the overlay.

Both are bounded whatever the length of the video: a few thumbnails, and at most :data:`MAX_MASKS` masks.
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Iterator
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.core.colors import OBJECT_COLORS
from pipeline.formats.palette import read_indexed_png
from pipeline.formats.run_folder import VIDEO, RunFolder
from pipeline.report.markup import data_address
from pipeline.report.strips import Clock

MAX_MASKS = 300
_MASK_SIDES_PX = (192, 96, 48)
_MAX_MASK_BYTES = 2_000_000
_CHUNK_MASKS = 32
_THUMBNAIL_WIDTH_PX = 320
_JPEG_QUALITY = 72
_SEEK_AHEAD_FRAMES = 48


def thumbnails(run: RunFolder, frames: list[int], clock: Clock) -> dict[int, str]:
    """JPEGs of frames as ``data:`` addresses: from the annotated video, else from the masks alone."""
    path = run.file(VIDEO)
    if path is None:
        masks = run.index_masks()
        return {f: _jpeg(_colored(read_indexed_png(masks[f]))) for f in frames if f in masks}
    wanted = sorted((clock.seconds(frame), frame) for frame in frames)
    found: dict[int, str] = {}
    try:
        with av.open(str(path)) as container:
            for frame, image in _pictures(container, wanted, clock.frame_seconds):
                found[frame] = _jpeg(image)
    except (av.FFmpegError, IndexError):
        return found
    return found


def _pictures(
    container: Any, wanted: list[tuple[float, int]], frame_seconds: float
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """The pictures at ascending times; seeks only where a wanted one is far ahead."""
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    height = max(2, round(stream.height * _THUMBNAIL_WIDTH_PX / stream.width / 2) * 2)
    decoder: Iterator[Any] = iter(())
    reached = -np.inf
    for seconds, index in wanted:
        if seconds - reached > _SEEK_AHEAD_FRAMES * frame_seconds:
            container.seek(round(seconds / float(stream.time_base)), stream=stream)
            decoder = container.decode(stream)
        for picture in decoder:
            reached = float(picture.pts * stream.time_base)
            if reached >= seconds - frame_seconds / 2:
                yield index, picture.to_ndarray(format="rgb24", width=_THUMBNAIL_WIDTH_PX, height=height)
                break


def _colored(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    height = max(1, round(mask.shape[0] * _THUMBNAIL_WIDTH_PX / mask.shape[1]))
    small = cv2.resize(mask, (_THUMBNAIL_WIDTH_PX, height), interpolation=cv2.INTER_NEAREST)
    return np.asarray(OBJECT_COLORS[small], np.uint8)


def _jpeg(image: npt.NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return data_address("image/jpeg", buffer.getvalue())


def packed_masks(run: RunFolder, clock: Clock) -> dict[str, Any] | None:
    """The index masks for the overlay, small enough for a page; None without masks.

    Every mask but the first of a chunk is stored as its XOR with the mask before, and a chunk is compressed
    (zlib).

    Returns:
        ``width``, ``height``, ``step`` (a mask of every ``step``-th frame), ``seconds`` of each mask, and
        ``chunks`` in base64 with ``chunk_masks`` masks each.
    """
    paths = list(run.index_masks().items())
    if not paths:
        return None
    step = -(-len(paths) // MAX_MASKS)
    kept = paths[::step]
    masks = [read_small(path, _MASK_SIDES_PX[0]) for _, path in kept]
    chunks = _chunks(masks)
    for side in _MASK_SIDES_PX[1:]:
        if sum(map(len, chunks)) <= _MAX_MASK_BYTES:
            break
        masks = [_reduced(mask, side) for mask in masks]
        chunks = _chunks(masks)
    height, width = masks[0].shape
    return {
        "width": width,
        "height": height,
        "step": step,
        "seconds": [round(clock.seconds(frame), 4) for frame, _ in kept],
        "chunk_masks": _CHUNK_MASKS,
        "chunks": chunks,
    }


def read_small(path: Any, side_px: int) -> npt.NDArray[np.uint8]:
    """An index mask whose longer side is at most ``side_px``; pixels are picked, not mixed."""
    return _reduced(read_indexed_png(path), side_px)


def _reduced(mask: npt.NDArray[np.uint8], side_px: int) -> npt.NDArray[np.uint8]:
    scale = min(1.0, side_px / max(mask.shape))
    size = (max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale)))
    return np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST), np.uint8)


def _chunks(masks: list[npt.NDArray[np.uint8]]) -> list[str]:
    chunks = []
    for start in range(0, len(masks), _CHUNK_MASKS):
        stack = np.stack(masks[start : start + _CHUNK_MASKS])
        stack[1:] ^= stack[:-1].copy()
        chunks.append(base64.b64encode(zlib.compress(stack.tobytes(), 6)).decode("ascii"))
    return chunks


def unpacked_masks(packed: dict[str, Any]) -> list[npt.NDArray[np.uint8]]:
    """The masks of :func:`packed_masks` again, as the page's script reads them."""
    masks: list[npt.NDArray[np.uint8]] = []
    for chunk in packed["chunks"]:
        values = np.frombuffer(zlib.decompress(base64.b64decode(chunk)), np.uint8)
        stack = values.reshape(-1, packed["height"], packed["width"])
        masks.extend(np.bitwise_xor.accumulate(stack, axis=0))
    return masks
