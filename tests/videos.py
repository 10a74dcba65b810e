"""Small videos made on the spot, for the tests of decoding and of the whole flow."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]


def pattern(index: int, *, height: int = 48, width: int = 64) -> Image:
    """A gray frame with a bright square that moves right by two pixels per frame, top left dark."""
    image = np.full((height, width, 3), 90, np.uint8)
    left = 4 + 2 * index
    image[height // 4 : height * 3 // 4, left : left + width // 4] = (230, 60, 40)
    image[:6, :6] = 0
    return image


def write_video(
    path: Path,
    images: Iterable[Image],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: int = 25,
    pts: Iterable[int] | None = None,
    time_base: Fraction | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode RGB pictures; ``pts`` in units of ``time_base`` makes the frame rate variable."""
    times = iter(pts) if pts is not None else None
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        for index, image in enumerate(images):
            if index == 0:
                stream.height, stream.width, stream.pix_fmt = image.shape[0], image.shape[1], pix_fmt
                if time_base is not None:
                    stream.codec_context.time_base = time_base
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = next(times) if times is not None else index
            frame.time_base = time_base or Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def rotate_display(path: Path) -> None:
    """Patch an mp4's track header so that players turn it a quarter clockwise (as phones record)."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd")
    # version 0 track header: the 3 x 3 display matrix begins 40 bytes after the version byte.
    matrix = at + 4 + 40
    one, minus_one = (0x00010000).to_bytes(4, "big"), (-0x00010000).to_bytes(4, "big", signed=True)
    zero, unit = bytes(4), (0x40000000).to_bytes(4, "big")
    content[matrix : matrix + 36] = zero + one + zero + minus_one + zero + zero + zero + zero + unit
    path.write_bytes(bytes(content))
