from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.assembly import FlowConfig, check_live, load_flow_config
from pipeline.core.errors import ConfigError, InputError, MediaError, StageError
from pipeline.core.records import Packet
from pipeline.flow import run, stream
from pipeline.formats.palette import read_indexed_png
from pipeline.prompts import Point
from stages.cosegment import Cosegmenter
from stages.decode.in_flight import InFlightLimit
from tests.stages.decode.test_stream import QUICK, feeding
from tests.videos import pattern, write_video

NUM_FRAMES = 50
STAGES_ON_A_CORE = 3
"""A frame passes this many threads, each of which may be kept waiting."""
TINY = [
    "extract.backbone=vit_tiny_patch16_224",
    "extract.weights=random",
    "extract.short_side=48",
    "write.encoder_preset=ultrafast",
    "write.report=false",
    "write.segment_seconds=0.4",
    f"decode.live.options={json.dumps(QUICK)}",
]


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of video, which --live reads at its own rate."""
    path = tmp_path_factory.mktemp("live") / "square.ts"
    return write_video(path, [pattern(index % 20) for index in range(NUM_FRAMES)], options={"g": "10", "bf": "0"})


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "door.ts"
    os.mkfifo(path)
    return path


def live_config(*overrides: str) -> FlowConfig:
    return load_flow_config(overrides=[*TINY, *overrides], live=True)


def drawing_only(*overrides: str) -> FlowConfig:
    """Decode, annotate and write: stages that take no time, so that only the slow stage of a test does."""
    return live_config(*overrides).only("annotate", "write")


def assert_every_frame_is_accounted_for(record: dict[str, Any]) -> None:
    decode = record["reports"]["decode"]
    assert decode["received"] == decode["processed"] + decode["dropped"]
    assert record["frames"] == record["reports"]["write"]["frames_written"] == decode["processed"]


class Slow:
    """A stage that takes the same time for every frame, and notes when each frame is written and how old it is."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.ages: list[tuple[float, float]] = []
        self._zero: float | None = None

    def __call__(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        for packet in packets:
            if self._zero is None:
                self._zero = time.monotonic() - packet.frame.pts_seconds
            time.sleep(self.seconds)
            yield packet

    def written(self, packet: Packet) -> None:
        assert self._zero is not None
        now = time.monotonic()
        self.ages.append((now, now - self._zero - packet.frame.pts_seconds))


class Starvation:
    """Context manager that measures how long this process was kept from computing.

    A thread asks for 1 ms of processor time every 10 ms. What it waits for that beyond 20 ms (more than Python's
    own lock takes) is time in which the machine did something else.
    """

    def __enter__(self) -> Starvation:
        self.waits: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._measure, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)

    def _measure(self) -> None:
        while not self._ended.is_set():
            begun, worked = time.monotonic(), time.thread_time()
            self._ended.wait(0.01)
            while time.thread_time() - worked < 0.001:
                pass
            lost = time.monotonic() - begun - 0.011
            if lost > 0.02:
                self.waits.append((time.monotonic(), lost))

    def seconds_before(self, moment: float, span: float) -> float:
        """Seconds lost in the ``span`` seconds before a moment."""
        return sum(lost for at, lost in self.waits if moment - span <= at <= moment + 0.05)


def test_behind_a_slow_stage_every_frame_is_written_in_time(camera: Path, tmp_path: Path) -> None:
    """A frame's age is told from its own presentation time, as the file is played like a camera.

    What the machine took away while a frame was under way is allowed on top: nothing where it is idle.
    """
    slow = Slow(0.12)
    config = drawing_only("decode.live.max_latency_seconds=0.6", "decode.end_seconds=1.4")
    with Starvation() as starvation:
        result = run(camera, tmp_path / "out", config, further=[("slow", slow)], on_packet=slow.written)
    late = [(moment, age) for moment, age in slow.ages if age > 0.6]
    assert all(age - 0.6 <= STAGES_ON_A_CORE * starvation.seconds_before(moment, age) for moment, age in late)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert result.status == "done"
    assert (3 if starvation.waits else 8) <= result.frames < NUM_FRAMES / 2
    latency = record["reports"]["decode"]["latency_seconds"]
    assert starvation.waits or (latency["late_frames"] == 0 and latency["max"] <= 0.6)
    assert_every_frame_is_accounted_for(record)
    assert not (tmp_path / "out" / "segments").exists()


@pytest.mark.long
def test_queues_without_that_limit_would_make_frames_late(
    camera: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test before: what it measures does exceed the limit when frames go in freely."""
    monkeypatch.setattr(InFlightLimit, "has_room", lambda self: True)
    slow = Slow(0.12)
    config = drawing_only("decode.live.max_latency_seconds=0.6", "queue_depth=4")
    result = run(camera, tmp_path / "out", config, further=[("slow", slow)], on_packet=slow.written)
    assert max(age for _, age in slow.ages) > 0.6
    assert result.reports["decode"]["latency_seconds"]["late_frames"] > 0


def test_the_whole_flow_on_a_pipe_takes_every_frame(pipe: Path, camera: Path, tmp_path: Path) -> None:
    config = load_flow_config(overrides=[*TINY, "decode.end_seconds=0.8"])
    with feeding(pipe, camera.read_bytes()):
        result = run(pipe, tmp_path / "out", config)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert result.frames == 20
    assert record["reports"]["decode"]["mode"] == "every frame"
    assert len(list((tmp_path / "out" / "parts").iterdir())) == 20
    assert not (tmp_path / "out" / "checkpoint").exists()
    assert_every_frame_is_accounted_for(record)


def test_a_point_belongs_to_the_first_frame_that_is_processed(pipe: Path, camera: Path, tmp_path: Path) -> None:
    config = live_config("decode.end_seconds=0.5")
    with feeding(pipe, camera.read_bytes()):
        run(pipe, tmp_path / "out", config, prompts=[Point(12, 24, 4)])
    first = read_indexed_png(tmp_path / "out" / "masks" / "00000.png")
    assert set(np.unique(first)) == {0, 4}
    assert_every_frame_is_accounted_for(json.loads((tmp_path / "out" / "run.json").read_text()))


def test_stopping_a_stream_finishes_what_was_read(camera: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    result = run(
        camera,
        tmp_path / "out",
        drawing_only(),
        on_packet=lambda packet: seen.append(packet.index),
        stop=lambda: len(seen) >= 5,
    )
    assert result.status == "done"
    assert 5 <= result.frames < NUM_FRAMES
    assert_every_frame_is_accounted_for(json.loads((tmp_path / "out" / "run.json").read_text()))


def test_an_error_ends_the_run_although_the_input_is_silent(pipe: Path, camera: Path, tmp_path: Path) -> None:
    def fail(packets: Iterable[Packet]) -> Iterator[Packet]:
        for packet in packets:
            if packet.index > 2:
                raise ValueError("the stage of this test")
            yield packet

    content = camera.read_bytes()
    with feeding(pipe, content, pause_after=len(content) // 2):
        started = time.monotonic()
        with pytest.raises(StageError, match="the stage of this test"):
            run(pipe, tmp_path / "out", drawing_only(), further=[("fail", fail)])
        assert time.monotonic() - started < 8


def test_packets_can_be_streamed_and_left(pipe: Path, camera: Path) -> None:
    with feeding(pipe, camera.read_bytes()):
        packets = stream(pipe, live_config().only("annotate", decode={"every": 2}))
        first, second = next(packets), next(packets)
        packets.close()  # type: ignore[attr-defined]
    assert first.index == 0
    assert second.index % 2 == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("extract.batch_size=4", "a batch waits for its last frame"),
        ("cosegment.hold_back=true", "waits for several frames"),
        ("cosegment.mode=two_pass", "reads the input twice"),
        ("extract.drop_high_variance=2", "high_variance_indices"),
    ],
)
def test_what_would_hold_frames_back_is_refused(override: str, message: str) -> None:
    check_live(live_config())
    with pytest.raises(ConfigError, match=message):
        check_live(live_config(override))


def test_a_stream_cannot_be_resumed_and_a_file_has_no_segments(pipe: Path, camera: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to resume"):
        run(pipe, tmp_path / "out", live_config(), resume=True)
    with pytest.raises(ConfigError, match="segment_seconds is for streams"):
        run(camera, tmp_path / "out", load_flow_config(overrides=TINY))
    with pytest.raises(MediaError, match="no such file, and not a stream"):
        run(tmp_path / "nothing", tmp_path / "out", live_config())
    assert not (tmp_path / "out").exists()


def test_live_no_frame_waits_for_parts_and_they_are_fitted_again_on_more_frames(camera: Path) -> None:
    """Random features change from frame to frame, so cuts are switched off."""
    config = live_config("cosegment.cut_similarity=0", "cosegment.cut_drop=1")
    given = 0

    def count(packets: Iterable[Packet]) -> Iterator[Packet]:
        nonlocal given
        for packet in packets:
            given += 1
            yield packet

    stage = Cosegmenter(config.cosegment)
    frames = FlowConfig(extract=config.extract).only("extract", decode={"end_seconds": 0.8})
    packets = list(stream(camera, frames, keep_features=True))
    for number, packet in enumerate(stage(count(iter(packets))), start=1):
        assert given == number
        assert packet.parts is not None
    reasons = [fit["reason"] for fit in stage.report()["fits"]]
    assert reasons[:2] == ["start", "warm"]
    assert stage.report()["fits"][1]["window_frames"] == config.cosegment.warmup_frames
