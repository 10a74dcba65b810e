"""What is known about an input before its first frame is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Color:
    """How a video encodes color, as code points of ITU-T H.273 (the same numbers as in FFmpeg); 2 is unspecified.

    Attributes:
        primaries: Color primaries, for example 1 for BT.709 and 9 for BT.2020.
        transfer: Transfer characteristics, for example 1 for BT.709 and 16 for PQ.
        matrix: Matrix coefficients, for example 1 for BT.709, 5 and 6 for BT.601, 9 for BT.2020.
        full_range: True for values from 0 to 255 (JPEG), False for 16 to 235, None if unspecified.
    """

    primaries: int = 2
    transfer: int = 2
    matrix: int = 2
    full_range: bool | None = None


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Facts about an input, known before its first frame is decoded.

    Attributes:
        path: The video file or the folder of images.
        height: Rows of a frame in pixels, after rotation.
        width: Columns of a frame in pixels, after rotation.
        frame_rate: Nominal frames per second, as the container says.
        num_frames: Frames the container promises, None where it does not say.
        time_base: Unit of the presentation times in seconds.
        frame_names: For a folder of images, the names without suffix in order; empty for a video.
        start_pts: Presentation time of frame 0 in units of ``time_base``, as stored in the file.
        stream_index: Which stream of the file is read.
        color: How the video encodes color; None for images.
        address: Of a stream, where it comes from, without user and password; empty for files and folders.
    """

    path: Path
    height: int
    width: int
    frame_rate: Fraction
    num_frames: int | None
    time_base: Fraction
    frame_names: tuple[str, ...] = ()
    start_pts: int = 0
    stream_index: int = 0
    color: Color | None = None
    address: str = ""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"VideoInfo needs a positive size, got {self.height} x {self.width}")
        if self.frame_rate <= 0:
            raise ValueError(f"VideoInfo needs a positive frame rate, got {self.frame_rate}")

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    @property
    def shown(self) -> str:
        """The path, or a stream's address, for messages."""
        return self.address or str(self.path)
