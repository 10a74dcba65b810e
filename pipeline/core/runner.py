"""Runs generators side by side: one thread a stage, a bounded queue between two, one way to stop.

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

Knows nothing of frames or tensors: an item may have an integer ``index``, by which an error names it.
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

T = TypeVar("T")

_JOIN_SECONDS = 120.0
"""How long leaving the pipeline waits for a stage that is inside one computation."""


class PipelineStopped(Exception):
    """Raised inside a stage that waits for input or output once the pipeline has been stopped."""


@dataclass(slots=True)
class StageStatistics:
    """What one stage did.

    Attributes:
        name: The stage's name.
        items: Items it has put out.
        busy_seconds: Time inside the stage's own code.
        input_wait_seconds: Time it waited for the stage before it.
        output_wait_seconds: Time it waited for room in its output queue.
        deepest_queue: Most items that ever waited in its output queue.
        last_index: ``index`` of the last item it took, or None.
    """

    name: str
    items: int = 0
    busy_seconds: float = 0.0
    input_wait_seconds: float = 0.0
    output_wait_seconds: float = 0.0
    deepest_queue: int = 0
    last_index: int | None = None


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
        self.statistics: list[StageStatistics] = []

    def buffer(self, items: Iterable[T], *, name: str) -> Iterator[T]:
        """Start a thread that iterates ``items`` ahead of the caller, and return the buffered iterator.

        Args:
            items: The stage: usually a generator fed by an earlier ``buffer``.
            name: The stage's name in errors and statistics.
        """
        statistics = StageStatistics(name)
        queue: _BoundedQueue[T] = _BoundedQueue(self, self._queue_depth)
        self.statistics.append(statistics)
        self._queues.append(queue)  # type: ignore[arg-type]
        thread = threading.Thread(
            target=self._run_stage, args=(items, queue, statistics), name=f"stage-{name}", daemon=True
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
        """The stage that was busy longest, or None before anything ran."""
        return max(self.statistics, key=lambda stage: stage.busy_seconds, default=None)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        stuck = [thread.name for thread in self._threads if thread.is_alive()]
        if stuck and exc is None:
            raise RuntimeError(f"these stages did not end within {_JOIN_SECONDS:.0f} s: {', '.join(stuck)}")
        if exc is None and self._error is not None:
            raise self._error

    def _run_stage(self, items: Iterable[T], queue: _BoundedQueue[T], statistics: StageStatistics) -> None:
        self._current_stage.statistics = statistics
        try:
            self._pump(items, queue, statistics)
        except PipelineStopped:
            pass
        except BaseException as error:  # noqa: BLE001  (whatever a stage raises must end the run)
            self._fail(statistics, error)
        finally:
            self._close(items, statistics)
            queue.finish()

    def _pump(self, items: Iterable[T], queue: _BoundedQueue[T], statistics: StageStatistics) -> None:
        iterator = iter(items)
        while True:
            waited_before = statistics.input_wait_seconds
            started = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                waited = statistics.input_wait_seconds - waited_before
                statistics.busy_seconds += time.perf_counter() - started - waited
            statistics.output_wait_seconds += queue.put(item)
            statistics.items += 1
            statistics.deepest_queue = max(statistics.deepest_queue, queue.deepest)

    def _close(self, items: Iterable[T], statistics: StageStatistics) -> None:
        close = getattr(items, "close", None)
        if close is None:
            return
        started = time.perf_counter()
        try:
            close()
        except PipelineStopped:
            pass
        except BaseException as error:  # noqa: BLE001  (a stage that fails while closing failed)
            self._fail(statistics, error)
        statistics.busy_seconds += time.perf_counter() - started

    def _fail(self, statistics: StageStatistics, cause: BaseException) -> None:
        with self._lock:
            if self._error is None:
                self._error = StageError(statistics.name, statistics.last_index, cause)
                self._error.__cause__ = cause
        self.stop()

    def _waited(self, seconds: float) -> None:
        """Book a wait for input to the stage of the calling thread."""
        statistics: StageStatistics | None = getattr(self._current_stage, "statistics", None)
        if statistics is not None:
            statistics.input_wait_seconds += seconds

    def _took(self, item: object) -> None:
        """Note what the stage of the calling thread has taken from its input."""
        statistics: StageStatistics | None = getattr(self._current_stage, "statistics", None)
        index = getattr(item, "index", None)
        if statistics is not None and isinstance(index, int):
            statistics.last_index = index

    def _raise_stopped(self) -> None:
        """End a wait after a stop: with the error in the caller's thread, quietly in a stage's."""
        if getattr(self._current_stage, "statistics", None) is None and self._error is not None:
            raise self._error
        raise PipelineStopped


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
                self._pipeline._waited(time.perf_counter() - started)
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
    """What the next stage pulls from."""

    def __init__(self, pipeline: Pipeline, queue: _BoundedQueue[T]) -> None:
        self._pipeline = pipeline
        self._queue = queue

    def __next__(self) -> T:
        try:
            item = self._queue.get()
        except PipelineStopped:
            self._pipeline._raise_stopped()
            raise
        self._pipeline._took(item)
        return item
