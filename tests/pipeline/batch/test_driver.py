from __future__ import annotations

import time
import tracemalloc
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.batch.batch import BatchOptions, run_batch
from pipeline.batch.driver import Driver, WorkersError
from pipeline.batch.engine import Event
from pipeline.batch.jobs import Outcome, VideoJob
from pipeline.flow import FlowConfig

Act = Callable[[str, VideoJob, int], Event]


class FakeEngine:
    """Workers that answer at once with what ``act(worker, job, attempt)`` says."""

    def __init__(self, workers: int, act: Act) -> None:
        self.names = deque(f"w{number}" for number in range(workers))
        self.act = act
        self.attempts: Counter[str] = Counter()
        self.events: list[Event] = []
        self.interrupted = self.closed = False

    def start(self) -> None:
        pass

    def starting(self) -> int:
        return 0

    def idle(self) -> list[str]:
        return list(self.names)

    def submit(self, worker: str, job: VideoJob) -> None:
        self.names.remove(worker)
        self.attempts[job.name] += 1
        self.events.append(self.act(worker, job, self.attempts[job.name]))

    def wait(self, seconds: float) -> list[Event]:
        events, self.events = self.events, []
        self.names.extend(event.worker for event in events)
        if not events:
            time.sleep(0.01)
        return events

    def interrupt(self) -> None:
        self.interrupted = True

    def close(self) -> None:
        self.closed = True


class Forgetful(FakeEngine):
    """Holds nothing itself, so that the driver's memory can be measured."""

    def submit(self, worker: str, job: VideoJob) -> None:
        self.names.remove(worker)
        self.events.append(self.act(worker, job, 1))


def done(worker: str, job: VideoJob, attempt: int) -> Event:
    return Event("finished", worker, job, Outcome(job.name, "done", frames=10, new_frames=10))


def failed(worker: str, job: VideoJob, attempt: int) -> Event:
    return Event("finished", worker, job, Outcome(job.name, "failed", "bad luck"))


def drive(act: Act, jobs: int = 5, workers: int = 2, **options: float) -> tuple[list[Outcome], FakeEngine]:
    outcomes: list[Outcome] = []
    engine = FakeEngine(workers, act)
    driver = Driver(engine, on_outcome=lambda job, outcome: outcomes.append(outcome))
    for name, value in options.items():
        setattr(driver, name, value)
    driver.run(VideoJob(str(number), "") for number in range(jobs))
    assert engine.closed
    return outcomes, engine


def test_every_video_is_done_once() -> None:
    outcomes, engine = drive(done, jobs=50, workers=7)
    assert sorted(int(outcome.name) for outcome in outcomes) == list(range(50))
    assert set(engine.attempts.values()) == {1}


def test_a_video_that_fails_again_and_again_is_put_aside_and_the_others_are_done() -> None:
    outcomes, _ = drive(lambda w, job, n: (failed if job.name == "2" else done)(w, job, n))
    found = {outcome.name: (outcome.status, outcome.attempts) for outcome in outcomes}
    assert found.pop("2") == ("put_aside", 3)
    assert set(found.values()) == {("done", 1)}


def test_a_video_that_fails_once_is_done() -> None:
    outcomes, _ = drive(lambda w, job, n: (failed if n < 3 else done)(w, job, n))
    assert {(outcome.status, outcome.attempts) for outcome in outcomes} == {("done", 3)}


def test_a_video_that_kills_its_worker_is_put_aside_and_a_node_that_leaves_does_not_count() -> None:
    def act(worker: str, job: VideoJob, attempt: int) -> Event:
        if job.name == "0":
            return Event("lost", worker, job, reason="killed by SIGKILL")
        if job.name == "1" and attempt < 8:
            return Event("lost", worker, job, reason="node", blameless=True)
        return done(worker, job, attempt)

    outcomes, engine = drive(act)
    found = {outcome.name: outcome for outcome in outcomes}
    assert (found["0"].status, found["0"].attempts) == ("put_aside", 3)
    assert "killed by SIGKILL" in str(found["0"].error)
    assert (found["1"].status, found["1"].attempts) == ("done", 1)
    assert engine.attempts["0"] == 3


def test_nothing_hangs_when_every_node_leaves_for_ever() -> None:
    outcomes, _ = drive(lambda w, job, n: Event("lost", w, job, blameless=True), jobs=1)
    assert outcomes[0].status == "put_aside"


def test_a_video_in_other_hands_is_waited_for_but_not_for_ever() -> None:
    def busy(worker: str, job: VideoJob, attempt: int) -> Event:
        return Event("finished", worker, job, Outcome(job.name, "busy", "other:1 is at work on it"))

    soon, _ = drive(lambda w, job, n: (busy if n < 2 else done)(w, job, n), jobs=1)
    assert soon[0].status == "done"
    never, _ = drive(busy, jobs=2, busy_patience_seconds=0.05)
    assert {(outcome.status, outcome.error) for outcome in never} == {("busy", "other:1 is at work on it")}


class Unusable(FakeEngine):
    """Some workers never come up, and are started again and again."""

    def wait(self, seconds: float) -> list[Event]:
        return [*super().wait(seconds), Event("unusable", "bad", reason="no package")]


def test_workers_that_cannot_start_end_the_batch() -> None:
    with pytest.raises(WorkersError, match="no worker can be started: no package"):
        Driver(Unusable(0, done)).run([VideoJob("0", "")])


def test_workers_that_cannot_start_do_not_stop_the_others() -> None:
    outcomes: list[Outcome] = []
    driver = Driver(Unusable(1, done), on_outcome=lambda job, outcome: outcomes.append(outcome))
    driver.run(VideoJob(str(number), "") for number in range(50))
    assert [outcome.status for outcome in outcomes] == ["done"] * 50
    assert driver.warnings == ["no package"]


def test_ctrl_c_reports_what_was_under_way(tmp_path: Path) -> None:
    class Interrupted(FakeEngine):
        def wait(self, seconds: float) -> list[Event]:
            if not self.interrupted:
                raise KeyboardInterrupt
            return super().wait(seconds)

    def stopped(worker: str, job: VideoJob, attempt: int) -> Event:
        return Event("finished", worker, job, Outcome(job.name, "interrupted", "after 5 frames", 5, 5))

    jobs = [VideoJob(str(number), f"/nowhere/{number}.mp4") for number in range(5)]
    report, _ = run_batch(jobs, BatchOptions(str(tmp_path), FlowConfig()), engine=Interrupted(2, stopped))
    assert report.exit_code == 130
    assert [outcome.status for outcome in report.outcomes] == ["interrupted"] * 2
    assert report.total - len(report.outcomes) == 3


def simulate(videos: int, workers: int) -> tuple[float, int]:
    """Videos per second that the driver hands out, and the bytes it held at most."""
    counts: Counter[str] = Counter()
    driver = Driver(Forgetful(workers, done), on_outcome=lambda job, outcome: counts.update([outcome.status]))
    tracemalloc.start()
    started = time.process_time()
    driver.run(VideoJob(f"video-{number}", f"/data/{number}.mp4") for number in range(videos))
    seconds = time.process_time() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts == {"done": videos}
    return videos / seconds, peak


def test_the_driver_holds_only_what_is_under_way() -> None:
    rate, peak = simulate(5_000, 64)
    assert rate > 1_000
    assert peak < 2_000_000


@pytest.mark.long
def test_a_hundred_thousand_videos() -> None:
    rate, peak = simulate(100_000, 1_000)
    assert rate > 1_000
    assert peak < 10_000_000
