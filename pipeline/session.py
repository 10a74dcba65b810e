"""One run from its first frame to its ``run.json``: where it goes on, and what it leaves however it ends."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from pipeline.assembly import FlowConfig, Stages
from pipeline.core.checkpoint import Checkpointer, find_snapshot
from pipeline.core.errors import (
    DetectorError,
    InputError,
    LiftstreamError,
    OutputError,
    RunInterrupted,
    StageError,
    WriteError,
)
from pipeline.core.runner import STAGE_THREAD_PREFIX, Pipeline
from pipeline.report import write_report
from pipeline.run_record import RunResult, Status, finished_before, run_identity, write_record
from stages.decode import StreamDecoder
from stages.write import SegmentWriter, Writer
from stages.write.folder import CHECKPOINT, REPORT

_NOT_IN_IDENTITY: Final[dict[str, Any]] = {
    "queue_depth": True,
    "decode": {"live": True},
    "write": {
        "checkpoint_seconds": True,
        "checkpoint_frames": True,
        "report": True,
        "segment_seconds": True,
        "keep_last_seconds": True,
    },
}
"""Settings that change no byte of the results, so that a run may be resumed with others."""

_PAGE_ERRORS = (LiftstreamError, OSError, ValueError, LookupError, TypeError, ArithmeticError)
"""A run whose results are on the disk does not fail because of its page."""


def config_identity(config: FlowConfig) -> dict[str, Any]:
    """The settings that decide about the bytes of the results, as JSON values."""
    return config.model_dump(mode="json", exclude=_NOT_IN_IDENTITY)


class Session:
    """Context manager around a run: on leaving it the results are published and ``run.json`` is written.

    Args:
        source: The input.
        output: The output folder.
        config: The run's config.
        stages: From :func:`pipeline.assembly.make_stages`.
        labels: What was given as masks, detections and prompts; paths and lists of texts become part of the run's
            identity.
        names: Names of objects by id; they change no byte of the results and are not part of the identity.

    Attributes:
        pipe: The pipeline to run the stages in.
        checkpointer: Takes the snapshots; None where nothing is written, and for streams.
        result: Complete once the context is left.
    """

    def __init__(
        self,
        source: Path,
        output: Path,
        config: FlowConfig,
        stages: Stages,
        *,
        labels: Mapping[str, object],
        names: Mapping[int, str],
    ) -> None:
        self.pipe = Pipeline(config.queue_depth)
        self.result = RunResult(source, output, object_names=names)
        self._name = stages.info.shown
        self.checkpointer: Checkpointer | None = None
        self._stages = stages
        self._started = time.perf_counter()
        self._identity = run_identity(
            stages.info.address or source,
            config_identity(config),
            None if stages.extract is None else stages.extract.report(),
            labels,
        )
        # A stream cannot be read again from a place in it, so there is nothing to resume.
        if isinstance(stages.write, Writer) and not isinstance(stages.decode, StreamDecoder):
            self.checkpointer = Checkpointer(
                output / CHECKPOINT,
                self._identity,
                segment_frames=config.write.segment_frames,
                every_seconds=config.write.checkpoint_seconds,
                every_frames=config.write.checkpoint_frames,
                is_ready=stages.write.has_begun,
            )

    def resume(self) -> RunResult | None:
        """Go on after the last checkpoint, if there is one.

        Returns:
            The result of an earlier process, where the run is finished already; None where it is to be run.

        Raises:
            CheckpointError: What lies there belongs to another run, or is damaged.
        """
        finished = finished_before(self.result.folder, self.result.source, self._identity)
        if finished is not None:
            self._complete(finished)
            return finished
        snapshot = find_snapshot(self.result.folder / CHECKPOINT)
        if snapshot is not None and self.checkpointer is not None:
            snapshot.require(self._identity)
            assert isinstance(self._stages.write, Writer)
            if "write" in snapshot.stages:
                self._stages.write.go_on()
            else:  # taken in the first of two passes
                self._stages.write.begin_again()
            snapshot.restore(self._stages.present())
            self.checkpointer.go_on_after(snapshot)
            self.result.resumed_at = self._frames()
        return None

    def __enter__(self) -> Session:
        self._started = time.perf_counter()
        self._stages.streams.reset_peak()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        frames = self._frames()
        if exc is not None and frames == 0:
            self._raise_the_cause(exc)
            return
        status, problem = self._ending(exc, frames)
        self._finish(status, problem)
        if exc is not None:
            self._raise_the_cause(exc)

    def _frames(self) -> int:
        write = self._stages.write
        return 0 if write is None else write.frames_written

    def _ending(self, exc: BaseException | None, frames: int) -> tuple[Status, str | None]:
        if exc is None:
            broken = self._stages.decode.broken
            return ("damaged", broken) if broken else ("done", None)
        if isinstance(exc, LiftstreamError):
            return "failed", str(exc)
        return "interrupted", f"interrupted after {frames} frames"

    def _finish(self, status: Status, problem: str | None) -> None:
        """Publish the results and write ``run.json``; a disk that is full must not hide how the run ended."""
        result, write, stages = self.result, self._stages.write, self._stages
        result.status, result.problem, result.frames = status, problem, self._frames()
        result.seconds = time.perf_counter() - self._started
        result.reports, result.warnings = stages.reports(), stages.warnings()
        result.statistics = self.pipe.statistics
        result.device_peak_memory_bytes = stages.streams.peak_bytes()
        if status in ("done", "damaged"):
            for stage in self.pipe.statistics:
                stage.device_seconds = stages.clocks[stage.name].seconds() if stage.name in stages.clocks else None
        bottleneck = self.pipe.bottleneck()
        result.bottleneck = None if bottleneck is None else bottleneck.name
        if write is None:
            return
        checkpoints: dict[str, Any] = {"written": 0, "seconds": 0.0}
        if (checkpointer := self.checkpointer) is not None:
            result.warnings += checkpointer.warnings
            checkpoints = {"written": checkpointer.snapshots, "seconds": round(checkpointer.seconds, 3)}
        finished = status in ("done", "damaged")
        try:
            if f"{STAGE_THREAD_PREFIX}write" not in self.pipe.left_behind:
                write.publish()
            write_record(result, stages.info, self._identity, checkpoints=checkpoints)
        except OutputError as error:
            if finished:
                raise WriteError(f"{error}; {self._how_to_go_on('free some space and ')}") from error
            result.warnings.append(f"{error}; what is written so far is in {write.unfinished()}")
        else:
            if finished:
                write.discard_checkpoint()
            self._write_report(write)
        result.paths = [*write.paths(), *result.paths]

    def _complete(self, finished: RunResult) -> None:
        """What a process that was killed right after its ``run.json`` had no time for."""
        write = self._stages.write
        if not isinstance(write, Writer):
            return
        write.discard_checkpoint()
        if not (finished.folder / REPORT).exists():
            self._write_report(write)
            finished.warnings += self.result.warnings

    def _write_report(self, write: Writer | SegmentWriter) -> None:
        """Write ``report.html``; a page that cannot be made is a warning, as the results are there."""
        if not write.config.report or self.result.status == "interrupted":
            return
        try:
            self.result.paths.append(write_report(self.result.folder))
        except _PAGE_ERRORS as error:
            self.result.warnings.append(f"no report: {error}")

    def _how_to_go_on(self, first: str = "") -> str:
        return f"{first}go on with --resume" if self.checkpointer is not None else f"{first}start it again"

    def _raise_the_cause(self, exc: BaseException) -> None:
        """Turn a stage's error into what the caller can act on; the others pass as they are."""
        if isinstance(exc, KeyboardInterrupt):
            where = (
                f"{self._frames()} frames are written to {self.result.folder}"
                if self._frames()
                else "no frame yet"
            )
            raise RunInterrupted(f"{self._name}: interrupted; {where}; {self._how_to_go_on()}") from exc
        if not isinstance(exc, StageError):
            return
        cause = exc.__cause__
        if exc.stage == "write" and isinstance(cause, OSError | OutputError):
            reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
            where = f"{self.result.folder}: cannot be written after {self._frames()} frames ({reason})"
            raise WriteError(f"{where}; {self._how_to_go_on('free some space and ')}") from exc
        if isinstance(cause, InputError | DetectorError):
            raise cause from exc
