"""The output folder of a run: whose it is, and what may be cleared from it.

A folder is ours when its ``run.json`` says so. ``files.sha256`` lists every other file of the run (``sha256sum -c
files.sha256`` checks them); nothing that is not listed is ever removed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.core.errors import OutputError
from pipeline.core.files import path_inside, write_json_whole

RECORD = "run.json"
FILE_LIST = "files.sha256"
REPORT = "report.html"
CHECKPOINT = "checkpoint"
SEGMENTS = "segments"
SEGMENT = "segment.json"
PRODUCER = "liftstream"
FINISHED = ("done", "damaged")
"""The statuses of a run that came to its end."""


def read_record(folder: Path) -> dict[str, Any] | None:
    """The ``run.json`` of a folder; None where there is none that a run of this program wrote."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and record.get("producer") == PRODUCER else None


def is_ours(folder: Path) -> bool:
    """Whether a run of this program wrote the folder."""
    return read_record(folder) is not None


def is_finished(folder: Path) -> bool:
    """Whether the run that wrote the folder came to its end."""
    record = read_record(folder)
    return record is not None and record.get("status") in FINISHED


def check_output(folder: Path, source: Path | None, *, overwrite: bool, resume: bool = False) -> None:
    """Refuse an output folder that a run may not write to. Changes nothing.

    Raises:
        OutputError: It is a file; it holds something and neither ``overwrite`` nor ``resume`` is given; it holds
            something that no run of ours wrote; the input lies in it.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file, not a folder; choose another --output")
    if not folder.is_dir() or all(path.name == f".{RECORD}.partial" for path in folder.iterdir()):
        return  # at most the first temporary file of a run that was killed there and then
    if not (overwrite or resume):
        raise OutputError(f"{folder}: exists already; choose another --output, or add --overwrite or --resume")
    if not is_ours(folder):
        raise OutputError(f"{folder}: not written by liftstream, so it is not replaced; choose another --output")
    if source is not None and source.resolve().is_relative_to(folder.resolve()):
        raise OutputError(f"{source}: this input lies in the folder to be replaced; choose another --output")


def clear_output(folder: Path) -> None:
    """Remove what an earlier run of ours wrote, and nothing else; folders that are empty then go too."""
    if not is_ours(folder):
        return
    for path in listed_files(folder):
        path.unlink(missing_ok=True)
    for segment in _segments(folder):
        clear_segment(segment)
    clear_partial_files(folder)
    checkpoint = folder / CHECKPOINT
    if checkpoint.is_dir() and not checkpoint.is_symlink():
        shutil.rmtree(checkpoint)
    for name in (REPORT, FILE_LIST, RECORD):
        (folder / name).unlink(missing_ok=True)
    for inner in folder.iterdir():
        if inner.is_dir() and not inner.is_symlink() and not any(inner.iterdir()):
            inner.rmdir()


def _segments(folder: Path) -> list[Path]:
    """The segments of a run on a stream that was killed."""
    inner = folder / SEGMENTS
    return sorted(path.parent for path in inner.glob(f"*/{SEGMENT}") if not path.parent.is_symlink())


def clear_segment(folder: Path) -> None:
    """Remove the files of one segment, and the folders that are empty then."""
    for path in listed_files(folder):
        path.unlink(missing_ok=True)
    for name in (FILE_LIST, SEGMENT):
        (folder / name).unlink(missing_ok=True)
    for inner in [*(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()), folder]:
        if not any(inner.iterdir()):
            inner.rmdir()


def take_over(folder: Path) -> None:
    """Make a folder that of a run that begins: without the files of an earlier one, and marked as ours."""
    clear_output(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Says whose folder this is, should the run be killed before it can say more.
    write_json_whole(folder / RECORD, {"producer": PRODUCER, "status": "running"})


def listed_files(folder: Path) -> Iterator[Path]:
    """The files that the lists of a finished or unfinished run name, as paths inside the folder."""
    for file_list in (folder / FILE_LIST, folder / CHECKPOINT / FILE_LIST):
        if not file_list.is_file():
            continue
        with file_list.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    yield path_inside(folder, *line.rstrip("\n").partition("  ")[2].split("/"))
                except OutputError:
                    continue


def clear_partial_files(folder: Path) -> None:
    """Remove temporary files that a run which was killed left behind."""
    for inner in (folder, *(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())):
        for path in inner.glob(".*.partial"):
            if path.is_file():
                path.unlink(missing_ok=True)
