from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import OutputError
from pipeline.core.records import Frame, Packet, Track
from pipeline.formats.track_lines import track_lines_to


def packet(index: int) -> Packet:
    tracks = (Track(1, (0.0, 1.5, 4.25, 6.0), 0.87654, "dog"), Track(2, (0, 0, 1, 1), 0.5, time_since_update=3))
    return Packet(Frame(np.zeros((8, 8, 3), np.uint8), index, index / 25), tracks=tracks)


def test_every_frame_is_a_line_with_the_tracks_seen_in_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tracks.jsonl"
    with track_lines_to(str(path), io.StringIO(), print) as write:
        for index in (0, 7):
            write(packet(index))
            # It is there at once, for a program that follows the file.
            assert json.loads(path.read_text().splitlines()[-1])["frame"] == index
    first = json.loads(path.read_text().splitlines()[0])
    assert first["tracks"] == [
        {"id": 1, "xyxy": [0, 1.5, 4.25, 6], "score": 0.8765, "category": "dog", "confidence": 1}
    ]


def test_a_reader_that_goes_away_does_not_end_the_run() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    said: list[str] = []
    with track_lines_to("-", Closed(), said.append) as write:
        write(packet(0))
        write(packet(1))
    assert said == ["nobody reads the tracks any more; the run goes on without writing them"]


def test_a_file_that_cannot_be_written_is_an_error_before_the_run(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="cannot be written"),
        track_lines_to(str(tmp_path), io.StringIO(), print),
    ):
        pass
