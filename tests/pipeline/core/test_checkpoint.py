from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.checkpoint import Checkpointer, find_snapshot
from pipeline.core.errors import CheckpointError
from pipeline.core.runner import Mark, Pipeline
from pipeline.core.state import State

IDENTITY: dict[str, Any] = {"input": {"bytes": 7}, "config": {"a": {"b": 1}}}


class Source:
    """Counts from where it stands to ``end``."""

    def __init__(self, end: int) -> None:
        self.end = end
        self.next = 0

    def __call__(self) -> Iterator[int]:
        while self.next < self.end:
            self.next += 1
            yield self.next - 1

    def state(self) -> State:
        return {"next": self.next}

    def restore(self, state: State) -> None:
        self.next = state["next"]


class Sum:
    """Gives pairs of a number and the sum up to it, two at a time; ends segments where it is told to."""

    def __init__(self) -> None:
        self.total = 0
        self.held: list[int] = []
        self.segments: list[int] = []

    def __call__(self, items: Iterable[int]) -> Iterator[tuple[int, int]]:
        for item in items:
            self.held.append(item)
            if len(self.held) == 2:
                yield from self._give()
        yield from self._give()

    def _give(self) -> Iterator[tuple[int, int]]:
        held, self.held = self.held, []
        for item in held:
            self.total += item
            yield item, self.total

    def end_segment(self) -> None:
        self.segments.append(self.total)

    def state(self) -> State:
        return {"total": self.total, "held": self.held, "segments": self.segments}

    def restore(self, state: State) -> None:
        self.total, self.held, self.segments = state["total"], state["held"], state["segments"]


def run(
    folder: Path, *, resume: bool = False, stop_after: int | None = None, **options: Any
) -> tuple[list[Any], Sum]:
    """The two stages over 50 numbers, with marks; ``stop_after`` leaves the loop early, as a kill would."""
    source, summing = Source(50), Sum()
    checkpointer = Checkpointer(folder, IDENTITY, segment_frames=7, every_seconds=1e9, every_frames=10, **options)
    snapshot = find_snapshot(folder) if resume else None
    if snapshot is not None:
        snapshot.require(IDENTITY)
        snapshot.restore({"source": source, "sum": summing})
        checkpointer.go_on_after(snapshot)
    got = []
    with Pipeline(queue_depth=2) as pipe:
        numbers: Iterator[int] = pipe.buffer(checkpointer.marked(source(), "source", source), name="source")
        for item in pipe.buffer(summing(numbers), name="sum", stage=summing):
            got.append(item)
            if len(got) == stop_after:
                break
    return got, summing


def test_a_resumed_run_gives_what_an_uninterrupted_one_gives(tmp_path: Path) -> None:
    whole, summing = run(tmp_path / "whole")
    assert [n for n, _ in whole] == list(range(50))
    for stop_after in range(1, 50, 3):
        folder = tmp_path / str(stop_after)
        before, _ = run(folder, stop_after=stop_after)
        after, resumed = run(folder, resume=True)
        # What came after the last checkpoint is given again; nothing is missing, nothing differs.
        again = len(before) + len(after) - len(whole)
        assert again >= 0
        assert before[: len(before) - again] + after == whole
        assert resumed.segments == summing.segments


def test_marks_are_where_the_frames_say_whatever_the_clock_does(tmp_path: Path) -> None:
    _, often = run(tmp_path / "often")
    checkpointer = Checkpointer(tmp_path / "never", IDENTITY, segment_frames=7, every_seconds=1e9)
    source, summing = Source(50), Sum()
    with Pipeline() as pipe:
        numbers: Iterator[int] = pipe.buffer(checkpointer.marked(source(), "source", source), name="source")
        list(pipe.buffer(summing(numbers), name="sum", stage=summing))
    assert summing.segments == often.segments
    assert find_snapshot(tmp_path / "never") is None


def test_one_snapshot_is_kept_and_a_torn_one_is_not_used(tmp_path: Path) -> None:
    run(tmp_path)
    (kept,) = tmp_path.glob("state-*")
    (tmp_path / "state-999999").mkdir()
    (tmp_path / ".state-999998.partial").mkdir()
    snapshot = find_snapshot(tmp_path)
    assert snapshot is not None
    assert snapshot.folder == kept
    assert snapshot.frames == 42


def test_a_snapshot_of_another_run_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    run(tmp_path, stop_after=40)
    snapshot = find_snapshot(tmp_path)
    assert snapshot is not None
    other = {"input": {"bytes": 8}, "config": {"a": {"b": 1, "c": 2}}}
    with pytest.raises(CheckpointError, match=r"input\.bytes \(7 -> 8\); config\.a\.c \(None -> 2\)"):
        snapshot.require(other)


@pytest.mark.parametrize("broken", ["source.json", "sum.safetensors"])
def test_a_damaged_state_is_an_error_not_a_fresh_start(tmp_path: Path, broken: str) -> None:
    run(tmp_path, stop_after=40)
    (kept,) = tmp_path.glob("state-*")
    (kept / broken).write_bytes(b"{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        run(tmp_path, resume=True)


def test_a_snapshot_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    warnings: list[str] = []
    got, _ = run(tmp_path, warnings=warnings)
    assert len(got) == 50
    assert warnings
    assert all("No space left on device" in line for line in warnings)
    assert not list(tmp_path.glob("*state-*"))


def test_a_mark_is_never_handed_to_a_stage(tmp_path: Path) -> None:
    seen: list[object] = []

    def watching(items: Iterable[int], note: Callable[[object], None]) -> Iterator[int]:
        for item in items:
            note(item)
            yield item

    source = Source(30)
    checkpointer = Checkpointer(tmp_path, IDENTITY, segment_frames=3, every_frames=3)
    with Pipeline() as pipe:
        numbers: Iterator[int] = pipe.buffer(checkpointer.marked(source(), "source", source), name="source")
        got = list(pipe.buffer(watching(numbers, seen.append), name="watching"))
    assert got == seen == list(range(30))
    assert not any(isinstance(item, Mark) for item in got)
