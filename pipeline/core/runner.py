"""Runs generators side by side: one thread per stage, a bounded queue between two, one way to stop.

A stage is any iterable that pulls from the one before it. ``Pipeline.buffer`` gives it a thread and a queue
of at most ``queue_depth`` items, and returns an iterator for the next stage to pull from::

    with Pipeline(queue_depth=4) as pipe:
        frames = pipe.buffer(decode(source), name="decode")
        packets = pipe.buffer(extract(frames), name="extract")
        for packet in packets:
            ...

Promises: order is kept and nothing is dropped; a full queue stops the stages before it; the first error
stops every thread, closes every generator (in the thread that ran it) and reaches the caller as one
:class:`~pipeline.core.errors.StageError`; leaving the ``with`` block early does the same without an error; no
wait is without an end, because every wait watches the pipeline's one stop flag.

A :class:`Mark` in the stream is a place between two items. It passes every stage in order, and no stage sees it:
when a stage asks for its next item and a mark is there, the mark visits the stage and goes on to the stage's
output. At that moment the stage has handled everything before the mark and nothing after it, which is what an
aligned snapshot needs (Chandy and Lamport 1985; Carbone et al. 2015, "Lightweight Asynchronous Snapshots for
Distributed Dataflows", https://arxiv.org/abs/1506.08603).

Knows nothing of frames or tensors: an item may have an integer ``index``, by which an error names it; a stage may
have an integer ``current_index``, which it sets to the item it is working on and which then takes precedence.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

from pipeline.core.errors import StageError
from pipeline.core.stage_statistics import StageStatistics

T = TypeVar("T")

STAGE_THREAD_PREFIX = "stage-"
"""How the names of stages' threads begin."""

_JOIN_SECONDS = 120.0
"""How long leaving the pipeline waits for a stage that is inside one computation."""

_INTERRUPTED_JOIN_SECONDS = 1.5
"""The same after Ctrl-C: the user is waiting. A stage that is still computing then is left behind."""


class PipelineStopped(Exception):
    """Raised inside a stage that waits for input or output once the pipeline has been stopped."""


class Mark:
    """A place between two items of the stream; see the module's text. Subclasses say what happens there."""

    def visit(self, name: str, stage: object) -> None:
        """Called in the thread of every stage after the source, in order, while the stage waits for input.

        Args:
            name: The stage's name.
            stage: What was given to :meth:`Pipeline.buffer`.
        """

    def arrive(self) -> None:
        """Called in the caller's thread when the mark has passed all stages."""


class Pipeline:
    """Owns the threads, the queues and the stop flag of one run. Use once, as a context manager.

    Args:
        queue_depth: Most items that wait between two stages; at least 1.
    """

    def __init__(self, queue_depth: int = 4) -> None:
        if queue_depth < 1:
            raise ValueError(f"queue_depth must be at least 1, got {queue_depth}")
        self._queue_depth = queue_depth
        self._queues: list[_BoundedQueue[object]] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._error: StageError | None = None
        self._current_stage = threading.local()
        self.stopped = False
        self.left_behind: tuple[str, ...] = ()
        self.statistics: list[StageStatistics] = []

    def buffer(
        self, items: Iterable[T | Mark], *, name: str, stage: object = None, at_least: int = 1
    ) -> Iterator[T]:
        """Start a thread that iterates ``items`` ahead of the caller, and return the buffered iterator.

        Args:
            items: The stage: usually a generator fed by an earlier ``buffer``. A source may put marks between
                its items.
            name: The stage's name in errors and statistics.
            stage: The object behind the generator, which marks visit.
            at_least: Items that may wait, where that is more than ``queue_depth``.
        """
        statistics = StageStatistics(name)
        queue: _BoundedQueue[T | Mark] = _BoundedQueue(self, max(self._queue_depth, at_least))
        self.statistics.append(statistics)
        self._queues.append(queue)  # type: ignore[arg-type]
        thread = threading.Thread(
            target=self._run_stage,
            args=(_Stage(items, queue, statistics, stage),),
            name=f"{STAGE_THREAD_PREFIX}{name}",
            daemon=True,
        )
        self._threads.append(thread)
        thread.start()
        return _BufferedIterator(self, queue)

    def stop(self) -> None:
        """Ask every stage to end; returns at once and may be called from any thread."""
        self.stopped = True
        for queue in self._queues:
            queue.wake()

    def bottleneck(self) -> StageStatistics | None:
        """The stage that was busy longest, itself or the device for it; None before anything ran."""
        return max(self.statistics, key=lambda stage: stage.longest_seconds, default=None)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        patience = _INTERRUPTED_JOIN_SECONDS if isinstance(exc, KeyboardInterrupt) else _JOIN_SECONDS
        deadline = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.left_behind = tuple(thread.name for thread in self._threads if thread.is_alive())
        if self.left_behind and exc is None:
            raise RuntimeError(f"these stages did not end within {patience:.0f} s: {', '.join(self.left_behind)}")
        if exc is None and self._error is not None:
            raise self._error

    def _run_stage(self, running: _Stage[T]) -> None:
        self._current_stage.running = running
        try:
            self._pump(running)
        except PipelineStopped:
            pass
        except BaseException as error:  # noqa: BLE001  (whatever a stage raises must end the run)
            self._fail(running, error)
        finally:
            self._close(running)
            running.queue.finish()

    def _pump(self, running: _Stage[T]) -> None:
        statistics, queue = running.statistics, running.queue
        iterator = iter(running.items)
        while True:
            waited_before = statistics.input_wait_seconds + statistics.output_wait_seconds
            started = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                waited = statistics.input_wait_seconds + statistics.output_wait_seconds - waited_before
                statistics.busy_seconds += time.perf_counter() - started - waited
            statistics.output_wait_seconds += queue.put(item)
            statistics.items += not isinstance(item, Mark)
            statistics.deepest_queue = max(statistics.deepest_queue, queue.deepest)

    def _close(self, running: _Stage[T]) -> None:
        close = getattr(running.items, "close", None)
        if close is None:
            return
        started = time.perf_counter()
        try:
            close()
        except PipelineStopped:
            pass
        except BaseException as error:  # noqa: BLE001  (a stage that fails while closing failed)
            self._fail(running, error)
        running.statistics.busy_seconds += time.perf_counter() - started

    def _fail(self, running: _Stage[T], cause: BaseException) -> None:
        current = getattr(running.stage, "current_index", None)
        says_so = isinstance(current, int) and current != running.index_when_it_took
        index = current if says_so else running.statistics.last_index
        with self._lock:
            if self._error is None:
                self._error = StageError(running.statistics.name, index, cause)
                self._error.__cause__ = cause
        self.stop()

    def _running(self) -> _Stage[object] | None:
        """The stage whose thread is calling; None in the caller's own thread."""
        return getattr(self._current_stage, "running", None)

    def _pass_on(self, mark: Mark) -> None:
        """Let a mark visit the stage of the calling thread and send it to the stage's output."""
        running = self._running()
        if running is None:
            mark.arrive()
            return
        mark.visit(running.statistics.name, running.stage)
        running.statistics.output_wait_seconds += running.queue.put(mark)

    def waited(self, seconds: float) -> None:
        """Book a wait for input to the stage of the calling thread."""
        running = self._running()
        if running is not None:
            running.statistics.input_wait_seconds += seconds

    def _took(self, item: object) -> None:
        """Note what the stage of the calling thread has taken from its input."""
        running = self._running()
        index = getattr(item, "index", None)
        if running is not None and isinstance(index, int):
            running.statistics.last_index = index
            running.index_when_it_took = getattr(running.stage, "current_index", None)

    def _raise_stopped(self) -> None:
        """End a wait after a stop: with the error in the caller's thread, quietly in a stage's."""
        if self._running() is None and self._error is not None:
            raise self._error
        raise PipelineStopped


@dataclass(slots=True)
class _Stage(Generic[T]):
    """A stage while it runs.

    Attributes:
        items: Its generator.
        queue: Its output queue.
        statistics: What it did.
        stage: The object behind the generator.
        index_when_it_took: The object's ``current_index`` when it took its last item.
    """

    items: Iterable[T | Mark]
    queue: _BoundedQueue[T | Mark]
    statistics: StageStatistics
    stage: object
    index_when_it_took: int | None = None


class _BoundedQueue(Generic[T]):
    """A queue whose blocking ends watch the pipeline's stop flag."""

    def __init__(self, pipeline: Pipeline, depth: int) -> None:
        self._pipeline = pipeline
        self._depth = depth
        self._items: deque[T] = deque()
        lock = threading.Lock()
        self._not_full = threading.Condition(lock)
        self._not_empty = threading.Condition(lock)
        self._finished = False
        self.deepest = 0

    def put(self, item: T) -> float:
        """Append ``item``, waiting for room; returns the seconds waited."""
        waited = 0.0
        with self._not_full:
            if len(self._items) >= self._depth and not self._pipeline.stopped:
                started = time.perf_counter()
                while len(self._items) >= self._depth and not self._pipeline.stopped:
                    self._not_full.wait()
                waited = time.perf_counter() - started
            if self._pipeline.stopped:
                raise PipelineStopped
            self._items.append(item)
            self.deepest = max(self.deepest, len(self._items))
            self._not_empty.notify()
        return waited

    def get(self) -> T:
        """The next item; StopIteration after the last, PipelineStopped on a stop."""
        with self._not_empty:
            if not self._ready():
                started = time.perf_counter()
                while not self._ready():
                    self._not_empty.wait()
                self._pipeline.waited(time.perf_counter() - started)
            if self._pipeline.stopped:
                raise PipelineStopped
            if not self._items:
                raise StopIteration
            item = self._items.popleft()
            self._not_full.notify()
        return item

    def finish(self) -> None:
        """Say that nothing more will be put."""
        with self._not_empty:
            self._finished = True
            self._not_empty.notify_all()

    def wake(self) -> None:
        """Wake both ends so that they see the stop flag."""
        with self._not_empty:
            self._not_empty.notify_all()
            self._not_full.notify_all()

    def _ready(self) -> bool:
        return bool(self._items) or self._finished or self._pipeline.stopped


class _BufferedIterator(Iterator[T]):
    """What the next stage pulls from; marks are passed on and never handed out."""

    def __init__(self, pipeline: Pipeline, queue: _BoundedQueue[T | Mark]) -> None:
        self._pipeline = pipeline
        self._queue = queue

    def __next__(self) -> T:
        while True:
            try:
                item = self._queue.get()
                if isinstance(item, Mark):
                    self._pipeline._pass_on(item)
                    continue
            except PipelineStopped:
                self._pipeline._raise_stopped()
                raise
            self._pipeline._took(item)
            return item
