"""What passes between the driver and its workers: a video to do, and what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Status = Literal["done", "damaged", "skipped", "put_aside", "failed", "busy", "interrupted"]
"""How a video ended.

- ``done``: finished in this batch. ``damaged``: finished, but parts of the input could not be decoded.
- ``skipped``: finished before with the same config.
- ``put_aside``: given up; the reason is kept, and the video is not tried again without ``--retry-failed``.
- ``failed``: this attempt failed and another one may succeed. ``busy``: another process is at work on it.
- ``interrupted``: stopped by Ctrl-C; goes on from its last checkpoint next time.
"""


@dataclass(frozen=True, slots=True)
class VideoJob:
    """One video to do.

    Attributes:
        name: Name of its folder in OUT: one path component, unique in the batch.
        source: A path or an fsspec URL of a video file, or the path of a folder of images.
        masks: Path or URL of its annotations, or None.
        detections: Path or URL of its boxes, or None.
        start_seconds: Where to begin; None for the config's value.
        end_seconds: Where to stop; None for the config's value.
    """

    name: str
    source: str
    masks: str | None = None
    detections: str | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one video.

    Attributes:
        name: The job's name.
        status: How it ended.
        error: One line; None where nothing is wrong.
        frames: Frames in the results.
        new_frames: Frames processed in this attempt.
        seconds: Wall time of this attempt on its worker.
        attempts: How often it was tried in this batch.
        worker: Where it was done, for example ``host:pid``.
    """

    name: str
    status: Status
    error: str | None = None
    frames: int = 0
    new_frames: int = 0
    seconds: float = 0.0
    attempts: int = 0
    worker: str = ""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker is told once, before its first video.

    Attributes:
        output: OUT, a path or an fsspec URL.
        config: The flow's config as JSON values.
        overwrite: Redo what was made with another config.
        threads: Threads of each library in the worker; None leaves them as they are.
        work: Folder for what is on its way to a remote OUT; None for one in the system's temporary folder.
        detector: What ``--detector`` names, for videos without boxes of their own; None for none.
    """

    output: str
    config: dict[str, Any]
    overwrite: bool = False
    threads: int | None = None
    work: str | None = None
    detector: str | None = None


def to_dict(item: VideoJob | Outcome | WorkerSettings) -> dict[str, Any]:
    """A record as JSON values."""
    return asdict(item)


def outcome_from(values: dict[str, Any]) -> Outcome:
    """The inverse of :func:`to_dict` for an outcome."""
    return Outcome(**{field.name: values[field.name] for field in fields(Outcome)})
