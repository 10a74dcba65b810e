"""The driver: gives each video to a worker, tries again what failed, puts aside what fails again and again.

It holds one small record per video and reads OUT by name, never by listing, so it is the same for ten videos and
for a hundred thousand.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

from pipeline.batch.engine import Engine, Event
from pipeline.batch.jobs import Outcome, VideoJob
from pipeline.core.errors import LiftstreamError

_WAIT_SECONDS = 0.5
_BUSY_SECONDS = 1.0
_MAX_BLAMELESS = 20
_MAX_FAILED_ROUNDS = 3
_FAILING_SECONDS = 120.0
_MAX_WARNINGS = 20
_STOP_SECONDS = 60.0


class WorkersError(LiftstreamError):
    """No worker can be started."""


@dataclass(slots=True)
class WorkerLoad:
    """What one worker has done.

    Attributes:
        videos: Videos that it finished or gave up.
        frames: Frames that it processed.
        busy_seconds: Time with a video in its hands.
    """

    videos: int = 0
    frames: int = 0
    busy_seconds: float = 0.0


@dataclass(slots=True)
class Running:
    """A video in a worker's hands."""

    job: VideoJob
    since: float
    frames: int = 0


@dataclass(slots=True)
class Driver:
    """One batch from its first video to its last; used once.

    Attributes:
        engine: Runs the workers.
        max_attempts: Attempts per video.
        on_outcome: Called with the job and the final outcome of each video.
        on_event: Called about twice a second, for a display.
        busy_patience_seconds: How long to wait for a video that another process is at work on, counted from when
            nothing else is left to do.
        running: What the workers have in their hands, by worker.
        loads: What the workers have done.
        frames: Frames processed so far.
        warnings: What is wrong with the workers, one line each.
    """

    engine: Engine
    max_attempts: int = 3
    on_outcome: Callable[[VideoJob, Outcome], None] = lambda job, outcome: None
    on_event: Callable[[], None] = lambda: None
    busy_patience_seconds: float = 60.0
    running: dict[str, Running] = field(default_factory=dict)
    loads: dict[str, WorkerLoad] = field(default_factory=dict)
    frames: int = 0
    warnings: list[str] = field(default_factory=list)
    _again: deque[VideoJob] = field(default_factory=deque)
    _busy: deque[tuple[float, VideoJob, str]] = field(default_factory=deque)
    _attempts: Counter[str] = field(default_factory=Counter)
    _blameless: Counter[str] = field(default_factory=Counter)
    _failed_rounds: int = 0
    _failing_since: float | None = None
    _busy_since: float | None = None

    @property
    def waits_for_others(self) -> bool:
        """Whether only videos are left that other processes are at work on."""
        return bool(self._busy) and not self.running

    def run(self, jobs: Iterable[VideoJob]) -> None:
        """Do every video.

        Raises:
            WorkersError: No worker can be started.
            KeyboardInterrupt: After the workers have stopped; their outcomes were reported.
        """
        waiting = iter(jobs)
        try:
            with closing(self.engine):
                try:
                    self._loop(waiting)
                except KeyboardInterrupt:
                    self._stop()
                    raise
        finally:
            for running in self.running.values():
                self.on_outcome(running.job, Outcome(running.job.name, "interrupted", "stopped"))
            self.running.clear()

    def _loop(self, waiting: Iterator[VideoJob]) -> None:
        job = self._next(waiting)
        if job is None:
            return
        self.engine.start()
        while job is not None or self.running or self._again or self._busy:
            for worker in self.engine.idle():
                job = job or self._next(waiting)
                if job is None:
                    break
                self._submit(worker, job)
                job = None
            job = job or self._next(waiting)
            events = self.engine.wait(_WAIT_SECONDS)
            for event in events:
                self._handle(event)
            self._check_starts([event.reason for event in events if event.kind == "unusable"])
            self.on_event()
            if job is None and not self.running and not self._again:
                self._give_up_busy()

    def _next(self, waiting: Iterator[VideoJob]) -> VideoJob | None:
        """The next video: new ones first, so that one that failed is tried later and elsewhere."""
        job = next(waiting, None)
        if job is None and self._again:
            job = self._again.popleft()
        if job is None and self._busy and self._busy[0][0] <= time.monotonic():
            job = self._busy.popleft()[1]
        return job

    def _submit(self, worker: str, job: VideoJob) -> None:
        self.running[worker] = Running(job, time.monotonic())
        self._attempts[job.name] += 1
        self.engine.submit(worker, job)

    def _handle(self, event: Event) -> None:
        if event.kind == "progress":
            if (running := self.running.get(event.worker)) is not None:
                self.frames += max(0, event.frames - running.frames)
                running.frames = event.frames
            return
        running = self.running.pop(event.worker, None)
        if running is None:
            return
        load = self.loads.setdefault(event.worker, WorkerLoad())
        load.busy_seconds += time.monotonic() - running.since
        if event.kind == "lost":
            self._lost(running.job, event)
            return
        assert event.outcome is not None
        load.frames += event.outcome.new_frames
        self.frames += event.outcome.new_frames - running.frames
        load.videos += self._finished(running.job, event.outcome)

    def _check_starts(self, reasons: list[str]) -> None:
        """Go on with the other workers where one cannot be started; give up where none can.

        Raises:
            WorkersError: All that were started have failed several times, or some have for long.
        """
        self.warnings += [reason for reason in dict.fromkeys(reasons) if reason not in self.warnings][
            : _MAX_WARNINGS - len(self.warnings)
        ]
        if self.running or self.engine.idle():
            self._failed_rounds, self._failing_since = 0, None
            return
        if not reasons:
            return
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        self._failed_rounds += self.engine.starting() == 0
        if self._failed_rounds >= _MAX_FAILED_ROUNDS or now - self._failing_since >= _FAILING_SECONDS:
            raise WorkersError(f"no worker can be started: {reasons[-1]}")

    def _lost(self, job: VideoJob, event: Event) -> None:
        error = f"its worker died ({event.reason})"
        if event.blameless and self._blameless[job.name] < _MAX_BLAMELESS:
            self._blameless[job.name] += 1
            self._attempts[job.name] -= 1
            self._again.append(job)
            return
        self._finished(job, Outcome(job.name, "failed", error, worker=event.worker))

    def _finished(self, job: VideoJob, outcome: Outcome) -> bool:
        """Whether this was the last of it."""
        outcome = replace(outcome, attempts=self._attempts[job.name])
        if outcome.status == "busy":
            self._attempts[job.name] -= 1
            self._busy.append((time.monotonic() + _BUSY_SECONDS, job, outcome.error or ""))
            return False
        self._busy_since = None
        if outcome.status == "failed":
            if outcome.attempts < self.max_attempts:
                self._again.append(job)
                return False
            outcome = replace(outcome, status="put_aside")
        # What is final needs no counters any more: memory is bounded by what is under way.
        self._attempts.pop(job.name, None)
        self._blameless.pop(job.name, None)
        self.on_outcome(job, outcome)
        return True

    def _give_up_busy(self) -> None:
        """After a while with nothing else left, leave the videos of other processes to them."""
        now = time.monotonic()
        if self._busy_since is None:
            self._busy_since = now
        if now - self._busy_since < self.busy_patience_seconds:
            return
        while self._busy:
            _, job, holder = self._busy.popleft()
            self.on_outcome(job, Outcome(job.name, "busy", holder))

    def _stop(self) -> None:
        """Ask the workers to stop, and wait until they have; a second Ctrl-C ends them at once."""
        self.engine.interrupt()
        deadline = time.monotonic() + _STOP_SECONDS
        while self.running and time.monotonic() < deadline:
            for event in self.engine.wait(_WAIT_SECONDS):
                if event.kind == "progress":
                    continue
                running = self.running.pop(event.worker, None)
                if running is not None:
                    reason = event.reason or "stopped"
                    outcome = event.outcome or Outcome(running.job.name, "interrupted", reason)
                    self.on_outcome(running.job, outcome)
