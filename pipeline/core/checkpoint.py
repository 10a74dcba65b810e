"""Checkpoints of a run: an aligned snapshot of all stages, from which the run goes on bit for bit.

Every ``segment_frames`` frames the source puts a :class:`~pipeline.core.runner.Mark` into the stream. Where marks
are depends on the number of frames alone, never on the clock, so that files which are cut at marks (the video's
segments) are the same in every run. Some marks also take a snapshot: the state of each stage is saved as the mark
passes it, and when the mark has passed the last stage the snapshot gets its final name, which commits it. One
snapshot is kept::

    checkpoint/state-000002/run.json               what it belongs to, and where it stands
                            decode.json            a stage's state; see pipeline.core.state
                            decode.safetensors

Source: Chandy and Lamport 1985; Carbone et al. 2015, https://arxiv.org/abs/1506.08603, section 4.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipeline.core.errors import CheckpointError, OutputError
from pipeline.core.files import sync_to_disk, write_json_whole
from pipeline.core.runner import Mark
from pipeline.core.state import State, load_state, save_state

T = TypeVar("T")
_PREFIX = "state-"
_ABOUT = "run.json"


class Stateful(Protocol):
    """What a stage offers so that a run can be resumed."""

    def state(self) -> State:
        """Everything the stage needs to go on with the next packet."""

    def restore(self, state: State) -> None:
        """Take over such a state."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A committed snapshot.

    Attributes:
        folder: Where it lies.
        identity: What it belongs to: input, config, weights, versions, as nested dicts of text.
        frames: Frames that the source had given when it was taken.
        stages: Names of the stages whose states it holds.
    """

    folder: Path
    identity: Mapping[str, Any]
    frames: int
    stages: tuple[str, ...]

    @property
    def number(self) -> int:
        """Snapshots of a run count from 1."""
        return int(self.folder.name.removeprefix(_PREFIX))

    def restore(self, stages: Mapping[str, Stateful]) -> None:
        """Give the stages their states; stages that had not begun when it was taken are left as they are.

        Raises:
            CheckpointError: A state is missing or damaged.
        """
        for name in self.stages:
            stages[name].restore(load_state(self.folder, name))

    def require(self, identity: Mapping[str, Any]) -> None:
        """Check that the snapshot belongs to this run.

        Raises:
            CheckpointError: It does not; the message lists what differs.
        """
        differences = [f"{key} ({old} -> {new})" for key, old, new in differing(self.identity, identity)]
        if differences:
            shown = "; ".join(differences[:6]) + ("; ..." if len(differences) > 6 else "")
            raise CheckpointError(
                f"{self.folder.parent.parent}: the unfinished run there is not this one, it differs in {shown}; "
                "start it as it was, or add --overwrite without --resume"
            )


def find_snapshot(folder: Path) -> Snapshot | None:
    """The newest snapshot committed in a checkpoint folder, or None."""
    for path in sorted(folder.glob(f"{_PREFIX}*"), reverse=True):
        try:
            about = json.loads((path / _ABOUT).read_text(encoding="utf-8"))
            return Snapshot(path, about["identity"], int(about["frames"]), tuple(about["stages"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def differing(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, object, object]]:
    """The dotted keys whose values differ between two nested mappings, with both values.

    >>> list(differing({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}))
    [('a.c', 2, 3)]
    """
    for key in [*old, *(key for key in new if key not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differing(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b


@dataclass(slots=True)
class Checkpointer:
    """Puts marks into the stream and keeps the newest snapshot. One per run.

    Attributes:
        folder: ``OUT/<video>/checkpoint``.
        identity: What a snapshot of this run belongs to; must survive JSON unchanged.
        segment_frames: Frames between two marks.
        every_seconds: A mark takes a snapshot when this much wall time has passed since the last one.
        every_frames: Or when this many frames have; None for never.
        is_ready: Whether the output folder may be written to yet.
        frames: Frames that the source has given so far.
        snapshots: Snapshots taken so far, those of earlier parts of a resumed run included.
        seconds: Time spent on snapshots, over all threads.
        warnings: Snapshots that could not be written.
    """

    folder: Path
    identity: Mapping[str, Any]
    segment_frames: int = 64
    every_seconds: float = 60.0
    every_frames: int | None = None
    is_ready: Callable[[], bool] = lambda: True
    frames: int = 0
    snapshots: int = 0
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)
    _last_frames: int = 0
    _last_time: float = field(default_factory=time.monotonic)
    _under_way: bool = False

    def go_on_after(self, snapshot: Snapshot) -> None:
        """Count on from where a run was resumed."""
        self.frames, self.snapshots = snapshot.frames, snapshot.number

    def restart(self) -> None:
        """Count frames from 0: the source begins again."""
        self.frames = 0

    def marked(self, items: Iterator[T], name: str, source: Stateful) -> Iterator[T | Mark]:
        """The items of the source with marks between them.

        Args:
            items: What the source gives.
            name: Its name.
            source: Its object, whose state is taken between two items.
        """
        self._last_frames = self.frames
        for item in items:
            yield item
            self.frames += 1
            if self.frames % self.segment_frames == 0:
                yield self._mark(name, source)

    def _mark(self, name: str, source: Stateful) -> Mark:
        waited = time.monotonic() - self._last_time >= self.every_seconds
        counted = self.every_frames is not None and self.frames - self._last_frames >= self.every_frames
        if self._under_way or not (waited or counted) or not self.is_ready():
            return SegmentEnd()
        self._under_way, self._last_frames, self._last_time = True, self.frames, time.monotonic()
        mark = SnapshotMark(self)
        mark.visit(name, source)
        return mark

    def finished(self, seconds: float) -> None:
        """Called by a mark when its snapshot is committed or given up."""
        self._under_way = False
        self.snapshots += 1
        self.seconds += seconds


class SegmentEnd(Mark):
    """A mark at which a stage that writes in segments ends one."""

    def visit(self, name: str, stage: object) -> None:
        """Call the stage's ``end_segment``, if it has one."""
        end_segment = getattr(stage, "end_segment", None)
        if end_segment is not None:
            end_segment()


class SnapshotMark(SegmentEnd):
    """A mark that also saves the state of every stage it passes.

    A snapshot that cannot be written (a full disk, for example) is given up with a warning; the run goes on.
    """

    def __init__(self, checkpointer: Checkpointer) -> None:
        self._owner = checkpointer
        self._frames = checkpointer.frames
        self._stages: list[str] = []
        self._final = checkpointer.folder / f"{_PREFIX}{checkpointer.snapshots + 1:06d}"
        self._partial = checkpointer.folder / f".{self._final.name}.partial"
        self._problem: str | None = None
        self._seconds = 0.0
        self._attempt(self._begin)

    def visit(self, name: str, stage: object) -> None:
        """End the segment, then save the stage's state."""
        super().visit(name, stage)
        take: Callable[[], State] | None = getattr(stage, "state", None)
        if take is not None:
            self._attempt(lambda: save_state(self._partial, name, take()))
            self._stages.append(name)

    def arrive(self) -> None:
        """Commit the snapshot and remove the one before it."""
        self._attempt(self._commit)
        if self._problem is not None:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._owner.warnings.append(f"no checkpoint after {self._frames} frames: {self._problem}")
        self._owner.finished(self._seconds)

    def _begin(self) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)

    def _commit(self) -> None:
        about = {"identity": self._owner.identity, "frames": self._frames, "stages": self._stages}
        write_json_whole(self._partial / _ABOUT, about, sync=True)
        sync_to_disk(self._partial)
        os.replace(self._partial, self._final)
        sync_to_disk(self._final.parent)
        for older in self._owner.folder.glob(f"{_PREFIX}*"):
            if older != self._final:
                shutil.rmtree(older, ignore_errors=True)

    def _attempt(self, action: Callable[[], None]) -> None:
        if self._problem is not None:
            return
        started = time.perf_counter()
        try:
            action()
        except (OSError, OutputError) as error:
            self._problem = getattr(error, "strerror", None) or str(error)
        self._seconds += time.perf_counter() - started
