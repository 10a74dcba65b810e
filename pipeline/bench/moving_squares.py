"""A video of any length in which every stage has something to do, made on the spot."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

HEIGHT, WIDTH = 96, 128


def write_moving_squares(path: Path, frames: int, *, frame_rate: int = 25) -> Path:
    """Two squares that move over a textured ground, 96 x 128 px, H.264.

    Args:
        path: The video to write.
        frames: Its length.
        frame_rate: Frames per second.

    Returns:
        ``path``.
    """
    ground = np.random.default_rng(0).integers(60, 120, (HEIGHT, WIDTH, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=frame_rate, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(frames):
            image = ground.copy()
            x, y = 10 + index % 60, 20 + (index // 3) % 30
            image[y : y + 32, x : x + 32] = (220, 60, 40)
            image[60:84, 90 - x // 2 : 114 - x // 2] = (40, 80, 230)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path
