from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator

import pytest

from pipeline.core.errors import StageError
from pipeline.core.runner import Mark, Pipeline


class Closable:
    """A stage that passes its input on, records its closing and can fail at a given item."""

    def __init__(self, items: Iterable[int], *, fail_at: int | None = None, fail_in_close: bool = False) -> None:
        self.items = items
        self.fail_at = fail_at
        self.fail_in_close = fail_in_close
        self.closed_in: str | None = None
        self.generator = self._run()

    def _run(self) -> Iterator[int]:
        try:
            for item in self.items:
                if item == self.fail_at:
                    raise ValueError(f"item {item}")
                yield item
        finally:
            self.closed_in = threading.current_thread().name
            if self.fail_in_close:
                raise OSError("cannot close")

    def __iter__(self) -> Iterator[int]:
        return self.generator

    def close(self) -> None:
        self.generator.close()  # type: ignore[attr-defined]


class Numbered:
    def __init__(self, index: int) -> None:
        self.index = index


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_success_keeps_order_and_every_item() -> None:
    with Pipeline(queue_depth=2) as pipe:
        first = Closable(range(500))
        second = Closable(pipe.buffer(first, name="first"))
        assert list(pipe.buffer(second, name="second")) == list(range(500))
    assert (first.closed_in, second.closed_in) == ("stage-first", "stage-second")


def test_no_more_than_queue_depth_items_wait_between_two_stages() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for i in range(1000):
            made.append(i)
            yield i

    with Pipeline(queue_depth=3) as pipe:
        items = pipe.buffer(source(), name="source")
        next(items)
        deadline = time.monotonic() + 5
        while len(made) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        # One taken, three waiting, one in the hand of the source's thread.
        assert len(made) == 5
    assert pipe.statistics[0].deepest_queue == 3


@pytest.mark.parametrize("failing", ["source", "middle", "sink"])
def test_an_error_names_stage_and_frame_and_closes_everything(failing: str) -> None:
    stages: dict[str, Closable] = {}
    with pytest.raises(StageError, match=f"stage '{failing}' failed") as caught:
        with Pipeline(queue_depth=2) as pipe:
            items: Iterable[int] = range(100)
            for name in ("source", "middle", "sink"):
                stages[name] = Closable(items, fail_at=20 if name == failing else None)
                items = pipe.buffer(stages[name], name=name)
            list(items)
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.stage == failing
    assert {name: stage.closed_in for name, stage in stages.items()} == {n: f"stage-{n}" for n in stages}


def test_the_error_carries_the_index_of_the_last_item_taken() -> None:
    def fail(items: Iterable[Numbered]) -> Iterator[Numbered]:
        for item in items:
            if item.index == 7:
                raise RuntimeError("seven")
            yield item

    with pytest.raises(StageError, match="at frame 7: RuntimeError: seven") as caught, Pipeline() as pipe:
        list(pipe.buffer(fail(pipe.buffer((Numbered(i) for i in range(20)), name="a")), name="b"))
    assert caught.value.frame_index == 7


def test_a_consumer_that_stops_early_ends_every_stage() -> None:
    with Pipeline(queue_depth=2) as pipe:
        first = Closable(range(10_000))
        second = Closable(pipe.buffer(first, name="first"))
        for item in pipe.buffer(second, name="second"):
            if item == 5:
                break
    assert first.closed_in == "stage-first"
    assert second.closed_in == "stage-second"


def test_an_error_in_the_consumer_is_not_replaced() -> None:
    with pytest.raises(KeyError, match="mine"), Pipeline() as pipe:
        for _ in pipe.buffer(Closable(range(1000)), name="only"):
            raise KeyError("mine")


def test_an_error_while_closing_is_reported() -> None:
    with pytest.raises(StageError, match="stage 'only'.*cannot close"), Pipeline() as pipe:
        list(pipe.buffer(Closable(range(3), fail_in_close=True), name="only"))


def test_the_first_of_two_errors_is_reported_once() -> None:
    with pytest.raises(StageError) as caught, Pipeline(queue_depth=1) as pipe:
        first = pipe.buffer(Closable(range(50), fail_at=10), name="first")
        list(pipe.buffer(Closable(first, fail_in_close=True), name="second"))
    assert caught.value.stage == "first"


def test_keyboard_interrupt_in_the_consumer_stops_the_run() -> None:
    stage = Closable(range(10_000))
    with pytest.raises(KeyboardInterrupt), Pipeline() as pipe:
        for _ in pipe.buffer(stage, name="only"):
            raise KeyboardInterrupt
    assert stage.closed_in == "stage-only"


def test_stop_from_another_thread_wakes_a_waiting_consumer() -> None:
    release = threading.Event()

    def slow() -> Iterator[int]:
        yield 0
        release.wait(20)
        yield 1

    with Pipeline() as pipe:
        items = pipe.buffer(slow(), name="slow")
        assert next(items) == 0
        threading.Timer(0.05, pipe.stop).start()
        with pytest.raises(Exception, match="^$") as caught:
            next(items)
        assert type(caught.value).__name__ == "PipelineStopped"
        release.set()


def test_statistics_tell_busy_from_waiting() -> None:
    def sleepy(items: Iterable[int], seconds: float) -> Iterator[int]:
        for item in items:
            time.sleep(seconds)
            yield item

    with Pipeline(queue_depth=1) as pipe:
        fast = pipe.buffer(sleepy(range(20), 0.0), name="fast")
        slow = pipe.buffer(sleepy(fast, 0.01), name="slow")
        after = pipe.buffer(sleepy(slow, 0.0), name="after")
        assert sum(1 for _ in after) == 20
    by_name = {stage.name: stage for stage in pipe.statistics}
    assert [stage.items for stage in pipe.statistics] == [20, 20, 20]
    assert by_name["slow"].busy_seconds > 0.15
    assert by_name["fast"].output_wait_seconds > 0.1
    assert by_name["after"].input_wait_seconds > 0.1
    bottleneck = pipe.bottleneck()
    assert bottleneck is not None
    assert bottleneck.name == "slow"


def test_the_wait_for_the_end_of_the_input_is_no_busy_time() -> None:
    def slow_to_end() -> Iterator[int]:
        yield 0
        time.sleep(0.2)

    def passes(items: Iterable[int]) -> Iterator[int]:
        yield from items

    with Pipeline() as pipe:
        list(pipe.buffer(passes(pipe.buffer(slow_to_end(), name="slow")), name="after"))
    assert pipe.statistics[1].busy_seconds < 0.1
    assert pipe.statistics[1].input_wait_seconds > 0.15


def test_a_queue_depth_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Pipeline(queue_depth=0)


class Recorder:
    """A stage that doubles numbers, holds one back, and knows what it has taken and given."""

    def __init__(self) -> None:
        self.held: list[int] = []
        self.taken = 0
        self.given = 0

    def __call__(self, items: Iterable[int]) -> Iterator[int]:
        for item in items:
            self.taken += 1
            self.held.append(item)
            if len(self.held) > 1:
                self.given += 1
                yield 2 * self.held.pop(0)
        while self.held:
            self.given += 1
            yield 2 * self.held.pop(0)


class Visitor(Mark):
    """Notes what each stage had taken, given and held back when it came by."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[int, int, list[int]]] = {}
        self.arrived = False

    def visit(self, name: str, stage: object) -> None:
        assert isinstance(stage, Recorder)
        self.seen[name] = (stage.taken, stage.given, list(stage.held))

    def arrive(self) -> None:
        self.arrived = True


def test_a_mark_visits_every_stage_between_the_same_two_items() -> None:
    mark, first, second = Visitor(), Recorder(), Recorder()

    def source() -> Iterator[int | Mark]:
        yield from range(5)
        yield mark
        yield from range(5, 9)

    with Pipeline(queue_depth=2) as pipe:
        numbers: Iterator[int] = pipe.buffer(source(), name="source")
        doubled = pipe.buffer(first(numbers), name="first", stage=first)
        got = list(pipe.buffer(second(doubled), name="second", stage=second))
    assert got == [4 * n for n in range(9)]
    assert mark.seen == {"first": (5, 4, [4]), "second": (4, 3, [6])}
    assert mark.arrived
    assert [stage.items for stage in pipe.statistics] == [9, 9, 9]


def test_an_error_names_the_item_a_stage_says_it_works_on() -> None:
    class Batching:
        current_index: int | None = None

        def __call__(self, items: Iterable[Numbered]) -> Iterator[Numbered]:
            batch = list(items)
            for item in batch:
                self.current_index = item.index
                if item.index == 2:
                    raise ValueError("bad item")
                yield item

    stage = Batching()
    with pytest.raises(StageError, match="at frame 2"), Pipeline() as pipe:
        list(pipe.buffer(stage(Numbered(n) for n in range(6)), name="batching", stage=stage))


def test_an_interrupt_does_not_wait_for_a_long_computation() -> None:
    release = threading.Event()

    def slow() -> Iterator[int]:
        yield 0
        release.wait(60)
        yield 1

    started = time.monotonic()
    pipe = Pipeline()
    try:
        with pytest.raises(KeyboardInterrupt), pipe:
            next(pipe.buffer(slow(), name="slow"))
            raise KeyboardInterrupt
        assert time.monotonic() - started < 10
        assert pipe.left_behind == ("stage-slow",)
    finally:
        release.set()
        for thread in pipe._threads:
            thread.join(10)
