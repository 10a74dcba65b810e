"""Lists of videos in a file: ``.txt`` (one input per line), ``.csv`` with a header, ``.jsonl``.

Columns and keys: ``input``, and optionally ``masks``, ``detections``, ``start``, ``end`` (seconds) and ``name``.
Relative paths count from the folder of the list.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pipeline.batch.storage import is_url, local_path, read_text
from pipeline.core.errors import InputError

MANIFEST_SUFFIXES = (".txt", ".csv", ".jsonl")
_COLUMNS = ("input", "masks", "detections", "start", "end", "name")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a list, or one input of the command line.

    Attributes:
        source: Path or URL.
        origin: Where it was given, for messages: ``list.csv:3``, or empty for the command line.
        name: The wanted name of its folder; empty for the input's own.
    """

    source: str
    origin: str = ""
    masks: str | None = None
    detections: str | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None
    name: str = ""


def is_manifest(text: str) -> bool:
    """Whether an input is a list of videos, by its suffix."""
    return text.lower().endswith(MANIFEST_SUFFIXES)


def read_manifest(text: str) -> list[Entry]:
    """The entries of a list.

    Raises:
        InputError: The file cannot be read, or a line is wrong; the message has the line's number.
    """
    content = read_text(text)
    suffix = PurePosixPath(text.lower()).suffix
    rows = {".txt": _text_rows, ".csv": _csv_rows, ".jsonl": _json_rows}[suffix](text, content)
    return [_entry(text, number, values) for number, values in rows]


def _text_rows(text: str, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(content.splitlines(), 1):
        stripped = line.strip()
        if "\0" in line:
            raise InputError(f"{text}:{number}: is not a list of inputs")
        if stripped and not stripped.startswith("#"):
            yield number, {"input": stripped}


def _csv_rows(text: str, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        header = [name.strip() for name in reader.fieldnames or []]
        if "input" not in header:
            raise InputError(f"{text}:1: the first line must name the columns, with 'input' among them")
        reader.fieldnames = header
        for values in reader:
            if None in values or None in values.values():
                raise InputError(f"{text}:{reader.line_num}: has not {len(header)} values as the first line")
            yield reader.line_num, {key: value.strip() for key, value in values.items() if value.strip()}
    except csv.Error as error:
        raise InputError(f"{text}:{reader.line_num}: not valid CSV ({error})") from error


def _json_rows(text: str, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{text}:{number}: not valid JSON") from error
        if not isinstance(values, dict):
            raise InputError(f"{text}:{number}: must be a JSON object such as {{'input': 'a.mp4'}}")
        yield number, {key: value for key, value in values.items() if value is not None}


def _entry(text: str, number: int, values: dict[str, Any]) -> Entry:
    where = f"{text}:{number}"
    if unknown := [key for key in values if key not in _COLUMNS]:
        raise InputError(f"{where}: unknown column '{unknown[0]}'; columns: {', '.join(_COLUMNS)}")
    for key in ("input", "masks", "detections", "name"):
        if key in values and (not isinstance(values[key], str) or not values[key] or "\0" in values[key]):
            raise InputError(f"{where}: '{key}' must be a text that is not empty")
    if "input" not in values:
        raise InputError(f"{where}: has no 'input'")
    return Entry(
        source=_resolved(text, values["input"]),
        origin=where,
        masks=_resolved(text, values["masks"]) if "masks" in values else None,
        detections=_resolved(text, values["detections"]) if "detections" in values else None,
        start_seconds=_seconds(where, "start", values),
        end_seconds=_seconds(where, "end", values),
        name=values.get("name", ""),
    )


def _seconds(where: str, key: str, values: dict[str, Any]) -> float | None:
    if key not in values:
        return None
    try:
        seconds = float(values[key]) if not isinstance(values[key], bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        raise InputError(f"{where}: '{key}' must be seconds from 0 on, not {str(values[key])[:40]!r}")
    return seconds


def _resolved(manifest: str, text: str) -> str:
    """A path of the list, from the list's folder."""
    if is_url(text):
        return text
    here = local_path(manifest)
    if here is not None:
        return str(here.parent / text)
    return text if text.startswith("/") else f"{manifest.rpartition('/')[0]}/{text}"
