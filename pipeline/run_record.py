"""What a run says about itself: its result, ``run.json``, what makes it this run, and the summary table."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from rich.table import Table

from pipeline.core.checkpoint import differing
from pipeline.core.errors import CheckpointError
from pipeline.core.files import sha256_of, write_json_whole
from pipeline.core.records import VideoInfo
from pipeline.core.stage_statistics import StageStatistics
from stages.write.folder import FILE_LIST, FINISHED, PRODUCER, RECORD, read_record

Status = Literal["done", "damaged", "failed", "interrupted"]
"""``damaged``: finished, but parts of the input could not be decoded."""

_PACKAGES = ("liftstream", "torch", "timm", "av", "numpy", "faiss-cpu", "opencv-python-headless", "supervision")


_HASHED_END_BYTES = 1 << 20


@dataclass(slots=True)
class RunResult:
    """What came of a run.

    Attributes:
        source: The input.
        folder: The output folder.
        status: How it ended.
        problem: One line that says what is missing; None where nothing is.
        frames: Frames written, those of an earlier part of a resumed run included.
        seconds: Wall time of this process's part.
        resumed_at: Frames that were there already when the run was resumed.
        was_done: The same run was finished before; nothing was done again.
        reports: The facts of each stage.
        warnings: One line each.
        statistics: What each stage did in this process.
        bottleneck: The stage that was busy longest.
        device_peak_memory_bytes: Most memory of the card that was in use at once; None on the CPU.
        paths: Files and folders written.
        object_names: Names given to objects, by id.
    """

    source: Path
    folder: Path
    status: Status = "done"
    problem: str | None = None
    frames: int = 0
    seconds: float = 0.0
    resumed_at: int = 0
    was_done: bool = False
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    statistics: list[StageStatistics] = field(default_factory=list)
    bottleneck: str | None = None
    device_peak_memory_bytes: int | None = None
    paths: list[Path] = field(default_factory=list)
    object_names: Mapping[int, str] = field(default_factory=dict)


def write_record(
    result: RunResult, info: VideoInfo, identity: Mapping[str, Any], *, checkpoints: Mapping[str, Any]
) -> None:
    """Write ``run.json``, the commit record of a run.

    Raises:
        OutputError: It cannot be written.
    """
    file_list = result.folder / FILE_LIST
    files = {"list": FILE_LIST, "sha256": sha256_of(file_list)} if file_list.is_file() else None
    values = {
        "producer": PRODUCER,
        "status": result.status,
        "problem": result.problem,
        "input": describe_input(info),
        "object_names": {str(number): name for number, name in sorted(result.object_names.items())},
        "frames": result.frames,
        "resumed_at": result.resumed_at,
        "seconds": round(result.seconds, 3),
        "peak_memory_bytes": peak_memory_bytes(),
        "device_peak_memory_bytes": result.device_peak_memory_bytes,
        "bottleneck": result.bottleneck,
        "stages": describe_statistics(result.statistics),
        "reports": result.reports,
        "warnings": result.warnings,
        "checkpoints": checkpoints,
        "files": files,
        "identity": identity,
    }
    write_json_whole(result.folder / RECORD, values, sync=True)


def run_identity(
    source: Path | str,
    config: Mapping[str, Any],
    extract: Mapping[str, Any] | None,
    labels: Mapping[str, object],
) -> dict[str, Any]:
    """What makes a run this run: two runs of the same identity write the same bytes on the same machine.

    Args:
        source: The input; a file is known by its content, not by where it lies; a stream by its address.
        config: The run's config as JSON values.
        extract: The report of the extractor, for the weights and the precision.
        labels: Masks, detections and prompts, as they were given.

    Returns:
        Nested dicts of JSON values.
    """
    extract = extract or {}
    lift = extract.get("lift")
    identity = {
        "input": {"address": source} if isinstance(source, str) else content_identity(source),
        "config": config,
        "weights": {"backbone": extract.get("weights_sha256"), "lift": lift.get("sha256") if lift else None},
        "compute": {name: extract.get(name) for name in ("device", "precision", "batch_size")},
        "labels": {name: label_identity(given) for name, given in labels.items()},
        "versions": versions(),
    }
    return dict(json.loads(json.dumps(identity, default=str)))


@runtime_checkable
class Identified(Protocol):
    """A source of detections that says what tells it from others."""

    def identity(self) -> Mapping[str, Path | str]:
        """Names and values; a path stands for the content of the file."""


def label_identity(given: object) -> object:
    """What tells labels from others: a file's content, the values of a mapping, or the name of a detector."""
    if isinstance(given, Path):
        return content_identity(given)
    if isinstance(given, Mapping):
        digest = hashlib.sha256()
        for index in sorted(given):
            digest.update(f"{index}:".encode())
            _hash_values(digest, given[index])
        return {"frames": len(given), "sha256": digest.hexdigest()}
    if isinstance(given, Identified):
        return {name: label_identity(value) for name, value in given.identity().items()}
    if callable(given):
        return f"{getattr(given, '__module__', '')}:{getattr(given, '__qualname__', type(given).__qualname__)}"
    return given


def _hash_values(digest: hashlib._Hash, value: object) -> None:
    if isinstance(value, np.ndarray):
        digest.update(repr((value.dtype.str, value.shape)).encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif is_dataclass(value):
        for name in (entry.name for entry in fields(value)):
            _hash_values(digest, getattr(value, name))
    else:
        digest.update(repr(value).encode())


def content_identity(path: Path) -> dict[str, Any]:
    """Size and a hash of both ends of a file; for a folder the names and sizes of what is in it."""
    digest = hashlib.sha256()
    if path.is_dir():
        entries = sorted((entry.name, entry.stat().st_size) for entry in path.iterdir() if entry.is_file())
        digest.update(repr(entries).encode())
        return {
            "name": path.resolve().name,
            "files": len(entries),
            "sha256_of_names_and_sizes": digest.hexdigest(),
        }
    size = path.stat().st_size
    with path.open("rb") as file:
        digest.update(file.read(_HASHED_END_BYTES))
        file.seek(max(0, size - _HASHED_END_BYTES))
        digest.update(file.read(_HASHED_END_BYTES))
    return {"name": path.name, "bytes": size, "sha256_of_both_ends": digest.hexdigest()}


def finished_before(folder: Path, source: Path, identity: Mapping[str, Any]) -> RunResult | None:
    """The result of the same run, if it is finished; None where there is none or it is unfinished.

    Raises:
        CheckpointError: A finished run of another identity lies there; the message lists what differs.
    """
    record = read_record(folder)
    if record is None or record.get("status") not in FINISHED:
        return None
    differences = [f"{key} ({old} -> {new})" for key, old, new in differing(record.get("identity", {}), identity)]
    if differences:
        raise CheckpointError(
            f"{folder}: holds a finished run that differs in {'; '.join(differences[:6])}; "
            "add --overwrite without --resume, or choose another --output"
        )
    return RunResult(source, folder, record["status"], record["problem"], record["frames"], was_done=True)


def peak_memory_bytes() -> int:
    """Most resident memory this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe_input(info: VideoInfo) -> dict[str, Any]:
    """An input's facts as JSON values."""
    return {
        "path": info.shown,
        "height": info.height,
        "width": info.width,
        "frame_rate": f"{info.frame_rate.numerator}/{info.frame_rate.denominator}",
        "num_frames": info.num_frames,
        "time_base": f"{info.time_base.numerator}/{info.time_base.denominator}",
    }


def describe_statistics(statistics: Sequence[StageStatistics]) -> list[dict[str, Any]]:
    """The stages' statistics as JSON values, with frames per second of busy time."""
    return [{**asdict(stage), "frames_per_busy_second": frames_per_second(stage)} for stage in statistics]


def frames_per_second(stage: StageStatistics) -> float | None:
    """Frames per second the stage, or the device for it, would do if it never waited."""
    return stage.items / stage.longest_seconds if stage.longest_seconds > 0 else None


def summary_table(title: str, statistics: Sequence[StageStatistics], bottleneck: str | None) -> Table:
    """The stages of a run as a table, the bottleneck marked."""
    table = Table(title=title, title_justify="left")
    table.add_column("stage")
    on_device = any(stage.device_seconds is not None for stage in statistics)
    for name in ("frames", "fps", "busy s", "waiting s", "deepest queue", *["device s"] * on_device):
        table.add_column(name, justify="right")
    for stage in statistics:
        rate = frames_per_second(stage)
        waiting = stage.input_wait_seconds + stage.output_wait_seconds
        mark = " (bottleneck)" if stage.name == bottleneck else ""
        table.add_row(
            stage.name + mark,
            str(stage.items),
            "-" if rate is None else f"{rate:.1f}",
            f"{stage.busy_seconds:.2f}",
            f"{waiting:.2f}",
            str(stage.deepest_queue),
            *["-" if stage.device_seconds is None else f"{stage.device_seconds:.2f}"] * on_device,
        )
    return table


def stream_line(report: Mapping[str, Any]) -> str | None:
    """What became of a stream's frames, from decode's report; None where the input was no stream."""
    if "received" not in report:
        return None
    reasons = {
        "newer": "for a newer one",
        "too_old": "too old",
        "before_start": "while the models were loaded",
        "at_end": "at the end",
    }
    parts = [f"{report[key]} {text}" for key, text in reasons.items() if report[key]]
    why = f" ({', '.join(parts)})" if parts else ""
    line = (
        f"stream: {report['received']} frames = {report['processed']} processed + {report['dropped']} dropped{why}"
    )
    latency = report["latency_seconds"]
    if latency and latency["max"] is not None:
        line += f"; latency {latency['median']:g} s median, {latency['p95']:g} s p95, {latency['max']:g} s max"
    if report["num_outages"]:
        line += f"; {report['num_outages']} times without a connection"
    return line
