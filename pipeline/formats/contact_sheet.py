"""Pictures of a video for a sheet: chosen evenly, encoded within a size."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.core.errors import ConfigError

Image = npt.NDArray[np.uint8]

_QUALITIES = range(92, 29, -4)


class EvenSample:
    """Pictures spread evenly over a video of unknown length; keeps four times as many at most."""

    def __init__(self, count: int) -> None:
        """Choose ``count`` pictures, at least one."""
        self._count, self._step, self._seen = count, 1, 0
        self._kept: list[tuple[int, Image]] = []

    def add(self, picture: Image) -> None:
        """Take the next picture."""
        if self._seen % self._step == 0:
            self._kept.append((self._seen, picture))
        self._seen += 1
        if len(self._kept) > 4 * self._count:
            self._kept, self._step = self._kept[::2], 2 * self._step

    def items(self) -> list[tuple[int, Image]]:
        """Frames and pictures chosen, in order, the first one among them; fewer where there are fewer."""
        places = np.unique(np.linspace(0, len(self._kept) - 1, self._count).round().astype(int))
        return [self._kept[place] for place in places] if self._kept else []


def encode_within(image: Image, max_bytes: int) -> tuple[bytes, int]:
    """An RGB image as JPEG with the highest quality that fits, and that quality.

    Raises:
        ConfigError: It does not fit at the lowest quality tried.
    """
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    for quality in _QUALITIES:
        content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(content) <= max_bytes:
            return content, quality
    raise ConfigError(f"the sheet has {len(content)} bytes at JPEG quality {quality}, not {max_bytes} or fewer")
