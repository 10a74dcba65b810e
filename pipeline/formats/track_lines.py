"""Tracks as JSON lines, one line per frame, for programs that follow a run while it runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from pipeline.core.errors import OutputError
from pipeline.core.records import Packet, Track

STANDARD_OUTPUT = "-"


def track_line(packet: Packet, finished_at: datetime) -> str:
    """One frame as a line of JSON, without the line feed.

    Args:
        packet: With tracks; only those seen in this frame are given.
        finished_at: When the frame left the flow.

    >>> from pipeline.core.records import Frame
    >>> import numpy as np
    >>> frame = Frame(np.zeros((8, 8, 3), np.uint8), 5, 0.2)
    >>> moment = datetime(2026, 1, 2, tzinfo=UTC)
    >>> track_line(Packet(frame, tracks=(Track(3, (1, 2, 4, 6), 0.9, "dog"),)), moment)
    '{"frame": 5, "seconds": 0.2, "finished_at": "2026-01-02T00:00:00.000+00:00", "tracks": [{"id": 3, \
"xyxy": [1, 2, 4, 6], "score": 0.9, "category": "dog", "confidence": 1.0}]}'
    """
    values = {
        "frame": packet.index,
        "seconds": round(packet.frame.pts_seconds, 6),
        "finished_at": finished_at.isoformat(timespec="milliseconds"),
        "tracks": [_values(track) for track in packet.tracks or () if track.time_since_update == 0],
    }
    return json.dumps(values)


def _values(track: Track) -> dict[str, object]:
    return {
        "id": track.track_id,
        "xyxy": [round(float(value), 2) if value % 1 else int(value) for value in track.xyxy],
        "score": round(float(track.score), 4),
        "category": track.category,
        "confidence": round(float(track.confidence), 4),
    }


@contextmanager
def track_lines_to(
    target: str, standard_output: TextIO, on_closed: Callable[[str], object]
) -> Iterator[Callable[[Packet], None]]:
    """A function that writes a packet's line at once.

    Args:
        target: A file, which is appended to; or ``-``.
        standard_output: What ``-`` stands for.
        on_closed: Called with a line for the user when nobody reads the lines any more; the run goes on.

    Raises:
        OutputError: The file cannot be written.
    """
    to_standard = target == STANDARD_OUTPUT
    try:
        if not to_standard:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
        file = standard_output if to_standard else Path(target).open("a", encoding="utf-8", newline="\n")
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror})") from error
    is_open = True

    def write(packet: Packet) -> None:
        nonlocal is_open
        if not is_open:
            return
        try:
            file.write(track_line(packet, datetime.now(UTC)) + "\n")
            file.flush()
        except BrokenPipeError:
            is_open = False
            on_closed("nobody reads the tracks any more; the run goes on without writing them")

    try:
        yield write
    finally:
        if not to_standard:
            file.close()
