"""Whether frames are missing at the end of a video, and how many."""

from __future__ import annotations

from pipeline.core.records import VideoInfo
from pipeline.formats.video_structure import ends_early
from stages.decode.session import Session, promised_seconds

_FLV_SLACK_FRAMES = 3
_MAX_ESTIMATE_RATIO = 20
"""A duration that promises more than so many times the frames that were read is taken for damage of the header."""


def find_missing_end(
    info: VideoInfo, session: Session, last_index: int, last_packet_index: int
) -> tuple[int, bool]:
    """What is missing after the last frame.

    Args:
        info: Facts about the file.
        session: At the end of the file.
        last_index: Index of the last frame that was decoded.
        last_packet_index: Index of the last packet that was read.

    Returns:
        The number of missing frames, and whether the file itself lacks its end.
    """
    known = max(last_index, last_packet_index)
    container = session.container
    early = ends_early(info.path, container.format.name, session.reader.last_byte)
    if not early and container.format.name == "flv" and len(container.streams) == 1:
        early = _promised_by_duration(info, session, known) > known + 1 + _FLV_SLACK_FRAMES
    promised = 0
    if info.num_frames and (early or "mov" in container.format.name.split(",")):
        promised = info.num_frames
    elif early:
        promised = _promised_by_duration(info, session, known)
    return max(known, promised - 1) - last_index, early


def _promised_by_duration(info: VideoInfo, session: Session, known: int) -> int:
    seconds = promised_seconds(session.container, session.stream)
    if seconds is None:
        return 0
    frames = round((seconds - float(info.start_pts * info.time_base)) * info.frame_rate)
    return frames if frames <= _MAX_ESTIMATE_RATIO * (known + 1) else 0
