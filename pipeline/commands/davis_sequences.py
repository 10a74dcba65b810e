"""Running the flow over DAVIS sequences and writing index masks in the official layout.

The masks of a sequence are written to a hidden folder and moved to their place when all are there, together with a
record of the config they were made with. A run that was interrupted goes on after its last checkpoint, within a
sequence too.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import CheckpointError, DamagedError, OutputError
from pipeline.core.files import path_inside, write_json_whole
from pipeline.flow import FlowConfig, RunResult, run
from pipeline.formats.davis import DavisSequence, results_missing
from pipeline.run_record import describe_statistics, peak_memory_bytes
from stages.extract import Extractor

_RECORDS = ".liftstream"
FPS_SCOPE = (
    "frames of all sequences over wall time from the first frame's decoding to the last mask on disk, all stages "
    "running side by side; loading the model and scoring are left out"
)


def davis_config(config: FlowConfig) -> FlowConfig:
    """The config with the stages switched off that DAVIS does not need, and only masks written."""
    masks_only = {"masks": True, "annotated_video": False, "parts": False, "tracks": False}
    masks_only |= {"objects": False, "report": False}
    return config.only("propagate", "write", write=masks_only)


def fingerprint(config: FlowConfig) -> str:
    """A hash of everything in the config that can change a mask."""
    values = config.model_dump(mode="json", exclude={"queue_depth"})
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def run_sequences(
    sequences: Sequence[DavisSequence],
    config: FlowConfig,
    output: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[str, int], None] = lambda name, frames: None,
) -> dict[str, dict[str, Any]]:
    """Propagate the first masks of the sequences; finished ones of the same config are kept.

    Args:
        sequences: What to run.
        config: From :func:`davis_config`.
        output: Gets ``<sequence>/00000.png`` and so on.
        overwrite: Run sequences again that are finished.
        progress: Called with the sequence's name and 1 per finished frame, or the number of frames skipped.

    Returns:
        A record per sequence: frames, seconds, stages, confidence, warnings, and ``resumed``.

    Raises:
        OutputError: A sequence is finished already, but with another config.
        DamagedError: Frames of a sequence could not be decoded.
    """
    key = fingerprint(config)
    # All are checked before any is run, so that a folder of another config fails at once.
    done = {s.name: finished_record(s, output, key, overwrite=overwrite) for s in sequences}
    records: dict[str, dict[str, Any]] = {}
    extractor: Extractor | None = None
    for sequence in sequences:
        record = done[sequence.name]
        if record is not None:
            progress(sequence.name, len(sequence.frame_names))
            records[sequence.name] = {**record, "resumed": True}
            continue
        extractor = extractor or Extractor(config.extract)
        record = _run_sequence(sequence, config, output, extractor, progress)
        _publish(sequence, output, {**record, "fingerprint": key})
        records[sequence.name] = {**record, "fingerprint": key, "resumed": False}
    return records


def finished_record(
    sequence: DavisSequence, output: Path, key: str, *, overwrite: bool = False
) -> dict[str, Any] | None:
    """The record of a finished and complete sequence, None if it has to be run.

    Raises:
        OutputError: It has masks of another config or without a record.
    """
    folder = path_inside(output, sequence.name)
    if not folder.is_dir():
        return None
    try:
        record: dict[str, Any] = json.loads(_record_path(output, sequence).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    if overwrite and not record:
        raise OutputError(f"{folder}: not written by liftstream, so it is not replaced; choose another --output")
    if overwrite:
        return None
    if record.get("fingerprint") != key:
        raise OutputError(
            f"{folder}: holds masks of {'another config' if record else 'unknown origin'}; "
            "choose another --output or add --overwrite"
        )
    return None if results_missing(sequence, output) else record


def summarize_timing(records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Frames a second over all sequences, with its scope, and the highest memory any process of them had."""
    frames = sum(record["frames"] - record.get("resumed_at", 0) for record in records.values())
    seconds = sum(record["seconds"] for record in records.values())
    return {
        "frames": frames,
        "seconds": round(seconds, 3),
        "fps": round(frames / seconds, 3) if seconds else None,
        "fps_scope": FPS_SCOPE,
        "peak_memory_bytes": max(record["peak_memory_bytes"] for record in records.values()),
        "resumed": [name for name, record in records.items() if record["resumed"]],
    }


def _run_sequence(
    sequence: DavisSequence,
    config: FlowConfig,
    output: Path,
    extractor: Extractor,
    progress: Callable[[str, int], None],
) -> dict[str, Any]:
    partial = _partial_path(output, sequence)

    def resume() -> RunResult:
        return run(
            sequence.frames_dir, partial, config, masks={0: sequence.first_mask()}, extractor=extractor,
            resume=True, on_packet=lambda packet: progress(sequence.name, 1),
        )  # fmt: skip

    try:
        result = resume()
    except CheckpointError:
        # The unfinished run has another config, or its checkpoint is damaged.
        shutil.rmtree(partial)
        result = resume()
    if result.status != "done":
        raise DamagedError(f"{sequence.name}: {result.problem}")
    done = result.frames - result.resumed_at
    return {
        "frames": len(sequence.frame_names),
        "resumed_at": result.resumed_at,
        "seconds": round(result.seconds, 3),
        "fps": round(done / result.seconds, 3) if result.seconds else None,
        "peak_memory_bytes": peak_memory_bytes(),
        "stages": describe_statistics(result.statistics),
        "propagate": result.reports.get("propagate"),
        "warnings": result.warnings,
    }


def _publish(sequence: DavisSequence, output: Path, record: dict[str, Any]) -> None:
    """Move the masks to their place. The record comes first: masks without one would belong to nobody."""
    folder, partial = path_inside(output, sequence.name), _partial_path(output, sequence)
    write_json_whole(_record_path(output, sequence), record, sync=True)
    if folder.exists():
        for name in sequence.frame_names:
            path_inside(folder, f"{name}.png").unlink(missing_ok=True)
        if any(folder.iterdir()):
            raise OutputError(f"{folder}: holds files that are not masks of this sequence; move them elsewhere")
        folder.rmdir()
    (partial / "masks").rename(folder)
    shutil.rmtree(partial)


def _partial_path(output: Path, sequence: DavisSequence) -> Path:
    return path_inside(output, _RECORDS, f"{sequence.name}.partial")


def _record_path(output: Path, sequence: DavisSequence) -> Path:
    return path_inside(output, _RECORDS, f"{sequence.name}.json")
