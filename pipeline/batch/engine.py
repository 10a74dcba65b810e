"""What the driver needs from whatever runs the workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from pipeline.batch.jobs import Outcome, VideoJob

EventKind = Literal["progress", "finished", "lost", "unusable"]


@dataclass(frozen=True, slots=True)
class Event:
    """News of a worker.

    Attributes:
        kind: ``progress``: it has done ``frames`` of its video. ``finished``: its video came out as ``outcome``.
            ``lost``: it died, with ``job`` in its hands or idle. ``unusable``: it could not be started.
        worker: Its name.
        job: What it had in its hands.
        outcome: For ``finished``.
        frames: For ``progress``.
        reason: For ``lost`` and ``unusable``, one line.
        blameless: For ``lost``: its machine went away, which the video cannot have caused.
    """

    kind: EventKind
    worker: str
    job: VideoJob | None = None
    outcome: Outcome | None = None
    frames: int = 0
    reason: str = ""
    blameless: bool = False


class Engine(Protocol):
    """Runs workers, each of which does one video at a time, and replaces those that die."""

    def start(self) -> None:
        """Start the workers; they need not be ready when this returns."""

    def starting(self) -> int:
        """Number of workers that have been started and are not ready yet."""

    def idle(self) -> list[str]:
        """Names of the workers that are ready and have nothing to do."""

    def submit(self, worker: str, job: VideoJob) -> None:
        """Give an idle worker a video."""

    def wait(self, seconds: float) -> list[Event]:
        """News of the workers; waits for some at most this long."""

    def interrupt(self) -> None:
        """Ask every worker to stop at the next frame; their ``interrupted`` outcomes come as events."""

    def close(self) -> None:
        """End every worker at once, and free what belongs to the engine. May be called twice."""
