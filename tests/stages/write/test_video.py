from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from stages.write import WriteConfig
from stages.write.video import SegmentedVideo, join_segments, segment_files

CONFIG = WriteConfig(encoder_preset="ultrafast", crf=8)


def encode(
    folder: Path, seconds: list[float], *, image_hw: tuple[int, int] = (48, 64), segment_frames: int = 5
) -> list[Path]:
    """Pictures of one color, gray levels rising with the frame number, in segments."""
    video = SegmentedVideo(folder, CONFIG, Fraction(25))
    for number, time in enumerate(seconds):
        video.write(np.full((*image_hw, 3), 20 + 5 * number, np.uint8), time)
        if (number + 1) % segment_frames == 0:
            video.end_segment()
    video.end_segment()
    return segment_files(folder)


def decoded(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def test_joining_keeps_every_frame_in_order_and_encodes_nothing_again(tmp_path: Path) -> None:
    segments = encode(tmp_path / "video", [n / 25 for n in range(13)])
    assert len(segments) == 3
    join_segments(segments, tmp_path / "joined.mp4", 0.04)
    pictures = [frame.to_ndarray(format="rgb24") for path in segments for frame in decoded(path)]
    joined = [frame.to_ndarray(format="rgb24") for frame in decoded(tmp_path / "joined.mp4")]
    np.testing.assert_array_equal(np.stack(joined), np.stack(pictures))
    levels = [int(picture.mean()) for picture in joined]
    assert levels == sorted(levels)


def test_times_of_a_variable_frame_rate_and_the_last_duration_are_kept(tmp_path: Path) -> None:
    seconds = [0.0, 0.04, 0.5, 0.54, 2.0, 2.04, 2.3]
    join_segments(encode(tmp_path / "video", seconds), tmp_path / "joined.mp4", 1.5)
    frames = decoded(tmp_path / "joined.mp4")
    assert [float(f.pts * f.time_base) for f in frames] == pytest.approx(seconds, abs=1e-4)
    assert float(frames[-1].duration * frames[-1].time_base) == pytest.approx(1.5)


def test_two_frames_of_one_time_get_rising_times(tmp_path: Path) -> None:
    join_segments(encode(tmp_path / "video", [0.0, 0.0, 0.0]), tmp_path / "joined.mp4", 0.04)
    times = [frame.pts for frame in decoded(tmp_path / "joined.mp4")]
    assert len(set(times)) == 3


@pytest.mark.parametrize(("height", "matrix"), [(720, 1), (480, 6)], ids=["BT.709", "BT.601"])
def test_colors_are_tagged_and_come_back(tmp_path: Path, height: int, matrix: int) -> None:
    video = SegmentedVideo(tmp_path / "video", CONFIG, Fraction(25))
    color = (30, 200, 60)
    video.write(np.full((height, 64, 3), color, np.uint8), 0.0)
    video.end_segment()
    join_segments(segment_files(tmp_path / "video"), tmp_path / "joined.mp4", 0.04)
    with av.open(str(tmp_path / "joined.mp4")) as container:
        context = container.streams.video[0].codec_context
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
        assert tags == (matrix, matrix, matrix, 1)
        frame = next(container.decode(video=0))
    # An independent inverse of the luma and chroma weights of ITU-R BT.709 and BT.601.
    kr, kb = (0.2126, 0.0722) if matrix == 1 else (0.299, 0.114)
    y, u, v = (float(plane.mean()) for plane in _planes(frame))
    luma, blue, red = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
    g = (luma - kr * r - kb * b) / (1 - kr - kb)
    np.testing.assert_allclose(np.array([r, g, b]) * 255, color, atol=3)


def _planes(frame: av.VideoFrame) -> list[np.ndarray]:
    yuv = frame.to_ndarray(format="yuv420p").ravel()
    size = frame.height * frame.width
    return [yuv[:size], yuv[size : size + size // 4], yuv[size + size // 4 :]]


def test_an_odd_size_is_padded_to_an_even_one(tmp_path: Path) -> None:
    join_segments(encode(tmp_path / "video", [0.0], image_hw=(47, 63)), tmp_path / "joined.mp4", 0.04)
    frame = decoded(tmp_path / "joined.mp4")[0]
    assert (frame.height, frame.width) == (48, 64)


def test_an_unfinished_segment_can_be_watched_and_joined(tmp_path: Path) -> None:
    segments = encode(tmp_path / "video", [n / 25 for n in range(10)])
    segments[-1].write_bytes(segments[-1].read_bytes()[:-40])
    join_segments(segments, tmp_path / "joined.mp4", 0.04)
    assert 5 <= len(decoded(tmp_path / "joined.mp4")) <= 10


def test_restoring_removes_the_segments_after_it(tmp_path: Path) -> None:
    encode(tmp_path / "video", [n / 25 for n in range(12)])
    video = SegmentedVideo(tmp_path / "video", CONFIG, Fraction(25))
    video.restore({"segments": 1, "last_pts": 4 * 3600})
    assert len(segment_files(tmp_path / "video")) == 1
