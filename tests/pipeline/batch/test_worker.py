from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.batch.batch import BatchOptions, known_outcome
from pipeline.batch.inputs import collect_jobs
from pipeline.batch.jobs import Outcome, VideoJob, WorkerSettings
from pipeline.batch.records import PutAside
from pipeline.batch.storage import Place
from pipeline.batch.worker import Worker
from pipeline.flow import FlowConfig, load_flow_config
from stages.extract import Extractor
from tests.pipeline.batch.clips import DAMAGED, GOOD, SETTINGS, TEXT, hashes, make_long_clip, settings

DECODE_ONLY = [f"{stage}.enabled=false" for stage in ("extract", "cosegment", "propagate", "track", "annotate")]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def worker(output: object, config: FlowConfig | None = None, **changes: Any) -> Worker:
    values = (config or settings()).model_dump(mode="json")
    return Worker(WorkerSettings(output=str(output), config=values, **changes))


def cheap(*more: str) -> FlowConfig:
    """Decode and write the masks' empty tables: no model."""
    return load_flow_config(None, [*DECODE_ONLY, *more])


def statuses(worker: Worker, jobs: list[VideoJob]) -> dict[str, str]:
    return {job.name: worker.do(job).status for job in jobs}


def test_a_worker_writes_the_bytes_of_run_and_keeps_its_backbone(
    clips: Path, expected: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Extractor] = []
    load = Extractor.__init__

    def count(self: Extractor, *args: Any, **options: Any) -> None:
        loaded.append(self)
        load(self, *args, **options)

    monkeypatch.setattr(Extractor, "__init__", count)
    jobs = collect_jobs([str(clips)], str(tmp_path / "out"), settings())
    found = statuses(worker(tmp_path / "out"), jobs)
    assert found == {**dict.fromkeys(GOOD, "done"), DAMAGED: "damaged", TEXT: "put_aside"}
    assert hashes(tmp_path / "out") == expected
    assert len(loaded) == 1


def test_what_is_finished_is_skipped_and_another_config_needs_overwrite(clips: Path, tmp_path: Path) -> None:
    job = VideoJob("one", str(clips / "clip0.mp4"))
    assert worker(tmp_path, cheap()).do(job).status == "done"
    written = (tmp_path / "one" / "run.json").stat().st_mtime_ns
    again = worker(tmp_path, cheap()).do(job)
    assert (again.status, again.frames, again.new_frames) == ("skipped", 10, 0)
    assert worker(tmp_path, cheap("queue_depth=9"), overwrite=True).do(job).status == "skipped"
    assert (tmp_path / "one" / "run.json").stat().st_mtime_ns == written
    other = worker(tmp_path, cheap("decode.every=2")).do(job)
    assert other.status == "put_aside"
    assert "decode.every (1 -> 2)" in str(other.error)
    assert "--overwrite" in str(other.error)
    assert worker(tmp_path, cheap("decode.every=2"), overwrite=True).do(job).frames == 5


def test_a_changed_input_is_noticed_also_at_the_same_size(clips: Path, tmp_path: Path) -> None:
    video = tmp_path / "in.mp4"
    shutil.copy(clips / "clip0.mp4", video)
    job = VideoJob("one", str(video))
    assert worker(tmp_path / "out", cheap()).do(job).status == "done"
    content = bytearray(video.read_bytes())
    content[-1] ^= 1
    video.write_bytes(content)
    assert "the input's content" in str(worker(tmp_path / "out", cheap()).do(job).error)


def test_a_folder_whose_list_is_damaged_is_not_finished(clips: Path, tmp_path: Path) -> None:
    job = VideoJob("one", str(clips / "clip0.mp4"))
    assert worker(tmp_path, cheap()).do(job).status == "done"
    (tmp_path / "one" / "files.sha256").write_text("0  a.png\n")
    look = known_outcome(BatchOptions(str(tmp_path), cheap()))
    assert look(job) is None


def test_a_folder_of_somebody_else_is_left_alone(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "thesis.txt").write_text("mine")
    outcome = worker(tmp_path, cheap(), overwrite=True).do(VideoJob("one", str(clips / "clip0.mp4")))
    assert outcome.status == "put_aside"
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["thesis.txt"]


def test_a_video_under_way_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    video = make_long_clip(tmp_path / "in", "long", 56)
    job = VideoJob("long", str(video))

    def stop_at(frame: int) -> Callable[[int], None]:
        def stop(frames: int) -> None:
            if frames >= frame:
                raise KeyboardInterrupt

        return stop

    whole = worker(tmp_path / "whole").do(job)
    assert (whole.status, whole.new_frames) == ("done", 56)
    stopped = worker(tmp_path / "out").do(job, stop_at(46))
    assert stopped.status == "interrupted"
    rest = worker(tmp_path / "out").do(job)
    assert (rest.status, rest.frames) == ("done", 56)
    assert rest.new_frames < 56
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    assert worker(tmp_path / "other").do(job, stop_at(46)).status == "interrupted"
    refused = worker(tmp_path / "other", load_flow_config(None, [*SETTINGS, "write.crf=30"])).do(job)
    assert "write.crf" in str(refused.error)


def test_a_video_in_another_process_is_busy(clips: Path, tmp_path: Path) -> None:
    lock = tmp_path / ".batch" / "locks" / "one"
    lock.parent.mkdir(parents=True)
    job = VideoJob("one", str(clips / "clip0.mp4"))
    with lock.open("w") as file:
        file.write("elsewhere:7")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        outcome = worker(tmp_path, cheap()).do(job)
        assert (outcome.status, outcome.error) == ("busy", "elsewhere:7 is at work on it")
    assert worker(tmp_path, cheap()).do(job).status == "done"
    assert not lock.exists()


def test_file_systems_without_locks_are_used_without(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(37, os.strerror(37))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert worker(tmp_path, cheap()).do(VideoJob("one", str(clips / "clip0.mp4"))).status == "done"


def test_what_is_put_aside_is_remembered_until_the_input_changes(tmp_path: Path) -> None:
    video = tmp_path / "in.mp4"
    video.write_text("no video")
    job = VideoJob("one", str(video))
    config = cheap()
    records = PutAside(Place(str(tmp_path / "out")), config)
    records.add(job, Outcome("one", "put_aside", "not a video", attempts=2, worker="a:1"))
    assert records.find(job) == Outcome("one", "put_aside", "not a video", attempts=2, worker="a:1")
    assert known_outcome(BatchOptions(str(tmp_path / "out"), config, retry_failed=True))(job) is None
    assert PutAside(Place(str(tmp_path / "out")), cheap("decode.every=2")).find(job) is None
    video.write_text("another try")
    assert records.find(job) is None
    records.forget(job)
    records.forget(job)


def test_a_missing_video_is_put_aside_and_a_failing_stage_is_a_failure(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no such file" in str(worker(tmp_path, cheap()).do(VideoJob("gone", "/nowhere/a.mp4")).error)

    def explode(*args: object, **options: object) -> None:
        raise RuntimeError("out of luck\nreally")

    monkeypatch.setattr("pipeline.batch.worker.run", explode)
    outcome = worker(tmp_path, cheap()).do(VideoJob("one", str(clips / "clip0.mp4")))
    assert (outcome.status, outcome.error) == ("failed", "RuntimeError: out of luck really")


def test_inputs_and_output_behind_urls(clips: Path, expected: dict[str, dict[str, str]], tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("clip0.mp4", "clip1.mp4"):
        memory.pipe_file(f"/videos/{name}", (clips / name).read_bytes())
    jobs = collect_jobs(["memory://videos/"], "memory://results", settings())
    found = worker("memory://results", work=str(tmp_path / "work"))
    assert statuses(found, jobs) == {"clip0": "done", "clip1": "done"}
    assert list((tmp_path / "work").iterdir()) == []
    memory.get("/results/", f"{tmp_path / 'got'}/", recursive=True)
    assert hashes(tmp_path / "got") == {name: expected[name] for name in ("clip0", "clip1")}
    assert json.loads((tmp_path / "got" / "clip0" / "run.json").read_text())["status"] == "done"
    assert statuses(found, jobs) == {"clip0": "skipped", "clip1": "skipped"}
    redo = worker("memory://results", cheap(), overwrite=True, work=str(tmp_path / "work"))
    assert redo.do(jobs[0]).status == "done"
    assert not memory.exists("/results/clip0/annotated.mp4")


def test_a_video_that_cannot_be_fetched_may_be_tried_again(tmp_path: Path) -> None:
    outcome = worker(tmp_path, cheap()).do(VideoJob("one", "memory://videos/not-there.mp4"))
    assert outcome.status == "failed"
    assert "not-there.mp4: cannot be copied to this machine (no such file)" in str(outcome.error)


def test_an_error_names_the_url_and_not_its_copy(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/videos/text.mp4", b"this is not a video")
    outcome = worker(tmp_path, cheap()).do(VideoJob("one", "memory://videos/text.mp4"))
    assert outcome.status == "put_aside"
    assert str(outcome.error).startswith("memory://videos/text.mp4: not a video")


def test_videos_are_copied_from_a_web_server(
    clips: Path, expected: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp")
    handler = partial(QuietHandler, directory=str(clips))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        jobs = [VideoJob("clip0", f"{url}/clip0.mp4"), VideoJob("gone", f"{url}/gone.mp4")]
        assert statuses(worker(tmp_path), jobs) == {"clip0": "done", "gone": "failed"}
        server.shutdown()
    assert hashes(tmp_path) == {"clip0": expected["clip0"]}


def test_a_range_of_a_video_is_that_of_run(clips: Path, tmp_path: Path) -> None:
    video = str(clips / "clip0.mp4")
    jobs = [VideoJob("head", video, end_seconds=0.2), VideoJob("tail", video, start_seconds=0.2)]
    assert [worker(tmp_path, cheap()).do(job).frames for job in jobs] == [5, 5]
    assert statuses(worker(tmp_path, cheap()), jobs) == {"head": "skipped", "tail": "skipped"}
