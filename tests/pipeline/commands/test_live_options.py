from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from pipeline.commands.live import Outputs, first_signal_ends_the_stream, live_settings, parse_duration
from pipeline.commands.run import Request, plan, run_all
from pipeline.core.errors import InputError
from pipeline.run_record import stream_line
from tests.pipeline.test_live import drawing_only
from tests.stages.decode.test_stream import feeding
from tests.videos import pattern, write_video


def test_durations() -> None:
    assert [parse_duration(text) for text in ("90", "90s", "10m", "2h", "1d")] == [90, 90, 600, 7200, 86400]
    for wrong in ("", "10 minutes", "-5m", "0"):
        with pytest.raises(InputError, match="--keep-last"):
            parse_duration(wrong)


def test_options_become_settings() -> None:
    assert live_settings(0.5, 3, None, "10m") == [
        "decode.live.max_latency_seconds=0.5",
        "decode.live.reconnect=3",
        "write.keep_last_seconds=600.0",
    ]


def test_a_stream_is_run_on_its_own_and_its_folder_has_a_name(tmp_path: Path) -> None:
    assert plan(["rtsp://u:p@cam/a"], tmp_path, None, None)[0].folder == tmp_path / "cam-a"
    assert plan(["-"], tmp_path, None, None)[0].folder == tmp_path / "stdin"
    with pytest.raises(InputError, match="rtsp://cam/a: a stream is run on its own"):
        plan(["clip.mp4", "rtsp://u:p@cam/a"], tmp_path, None, None)


def test_the_first_signal_ends_the_stream_and_the_second_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with first_signal_ends_the_stream(True) as ended:
        assert not ended()
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_gives_its_tracks_as_lines_and_says_what_became_of_the_frames(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_video(tmp_path / "square.ts", [pattern(index) for index in range(20)], options={"bf": "0"})
    pipe = tmp_path / "door.ts"
    os.mkfifo(pipe)
    with feeding(pipe, video.read_bytes()):
        code = run_all([Request(pipe, tmp_path / "out" / "door")], drawing_only(), Outputs(":0", "-"))
    captured = capsys.readouterr()
    assert code == 0
    frames = [json.loads(line)["frame"] for line in captured.out.splitlines()]
    assert frames[0] == 0
    assert frames == sorted(frames)
    assert "preview at http://localhost:" in captured.err
    record = json.loads((tmp_path / "out" / "door" / "run.json").read_text())
    line = stream_line(record["reports"]["decode"])
    assert line is not None
    assert line.startswith(f"stream: 20 frames = {len(frames)} processed + {20 - len(frames)} dropped")
    assert line in captured.err
    assert stream_line({"backend": "pyav"}) is None
