"""The frames of a video with decord, which indexes some files faster than FFmpeg's demuxer reads them.

decord converts colors as BT.601 and knows nothing of damage: reading ends at the first frame it cannot decode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from pipeline.core.errors import MediaError
from pipeline.core.records import VideoInfo
from pipeline.formats.video import fit_to_video
from stages.decode.indexed_frame import IndexedFrame

try:
    import decord
except ImportError:
    decord = None


def read_with_decord(
    info: VideoInfo, first_index: int, start_seconds: float, warn: Callable[[str], None]
) -> Iterator[IndexedFrame]:
    """Frames from ``first_index`` and ``start_seconds`` on, whichever is later.

    Raises:
        MediaError: decord is not installed or cannot open the file.
    """
    if decord is None:
        raise MediaError("decode.backend 'decord' needs the package decord; use 'pyav'")
    try:
        reader = decord.VideoReader(str(info.path))
        times = np.asarray(reader.get_frame_timestamp(list(range(len(reader)))))[:, 0]
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise MediaError(f"{info.path}: decord cannot open it; use decode.backend 'pyav'") from error
    times = times - times[0]
    first = max(first_index, int(np.searchsorted(times, start_seconds - 1e-9)))
    for index in range(first, len(times)):
        try:
            image = reader[index].asnumpy()
        except (decord.DECORDError, RuntimeError):
            yield IndexedFrame(None, index, float(times[index]))
            return
        yield IndexedFrame(fit_to_video(image, info, warn), index, float(times[index]))
    if info.num_frames and len(times) < info.num_frames:
        yield IndexedFrame(None, len(times), len(times) / float(info.frame_rate))
