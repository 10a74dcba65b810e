"""``index.html`` of a folder of runs or scored sequences: the most doubtful, or the worst scored, first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline.core.errors import LiftstreamError, OutputError
from pipeline.core.files import path_inside, write_text_whole
from pipeline.formats.run_folder import RunFolder, find_runs
from pipeline.report.markup import Markup, element, report_document, table, text
from pipeline.report.strips import Clock, mean_doubt, most_doubtful, object_strips, track_strips
from stages.write.folder import REPORT

INDEX = "index.html"
DAVIS_SCORES, TRACK_SCORES = "davis.json", "scores.json"


def write_index(folder: Path) -> Path:
    """Write ``index.html`` for the results in a folder: those of ``davis``, ``track-eval``, or many runs.

    Returns:
        The page.

    Raises:
        OutputError: The folder holds no results, or cannot be written.
    """
    path = path_inside(folder, INDEX)
    write_text_whole(path, index_page(folder))
    return path


def index_page(folder: Path) -> str:
    """The page as HTML.

    Raises:
        OutputError: The folder holds no results.
    """
    davis, tracking = _json(folder / DAVIS_SCORES), _json(folder / TRACK_SCORES)
    if isinstance(davis.get("sequences"), Mapping):
        what, content = "DAVIS sequences, the worst J&F first", _davis_table(folder, davis["sequences"])
    elif isinstance(tracking.get("sequences"), Mapping):
        what, content = "Tracked sequences, the worst HOTA first", _tracking_table(folder, tracking["sequences"])
    else:
        what, content = "Runs, the most doubtful first", _runs_table(*_runs(folder))
    note = element("p", text(f"{what}; click a column to sort by it."), class_="note")
    body = element("main", element("h1", text(folder.resolve().name)), note, content)
    return report_document(f"{folder.resolve().name}: liftstream results", body, script="index.js")


@dataclass(frozen=True, slots=True)
class _Row:
    """One line: what it is sorted by, and its cells."""

    rank: float
    cells: tuple[Markup, ...]


def _sorted_table(head: tuple[str, ...], rows: list[_Row]) -> Markup:
    ordered = sorted(rows, key=lambda row: row.rank)
    return table(head, (row.cells for row in ordered), class_="sortable")


def _runs(folder: Path) -> tuple[list[RunFolder], dict[str, str]]:
    """The runs in a folder, and why videos that a batch has put aside have none.

    Raises:
        OutputError: There is neither.
    """
    put_aside: dict[str, str] = {}
    for path in sorted(folder.glob("batch*.json")):
        videos = _json(path).get("videos")
        for video in videos if isinstance(videos, list) else []:
            if isinstance(video, Mapping) and video.get("status") == "put_aside":
                put_aside[str(video.get("name"))] = str(video.get("error"))
    try:
        runs = find_runs(folder)
    except OutputError:
        if not put_aside:
            raise
        runs = []
    for run in runs:
        put_aside.pop(run.folder.name, None)
    return runs, put_aside


def _runs_table(runs: list[RunFolder], put_aside: Mapping[str, str]) -> Markup:
    head = ("run", "status", "doubt", "worst moment", "objects", "frames", "seconds", "warnings")
    without = [_put_aside_row(len(head), name, error) for name, error in put_aside.items()]
    return _sorted_table(head, [*without, *(_run_row(run) for run in runs)])


def _put_aside_row(columns: int, name: str, error: str) -> _Row:
    status = element("span", text("put aside"), class_="status bad") + text(f" {error}")
    return _Row(-11.0, (text(name), status, *([text("-")] * (columns - 2))))


def _run_row(run: RunFolder) -> _Row:
    """A run that cannot be read in full still gets its line."""
    name = run.folder.name
    href = f"{quote(name)}/{REPORT}" if run.file(REPORT) else f"{quote(name)}/"
    try:
        objects, tracks = run.objects(), run.tracks()
        clock = Clock(run, run.frames({"objects": objects.frames, "tracks": tracks.frames}))
        strips = object_strips(objects, clock) or track_strips(tracks, clock)
        doubt, worst = mean_doubt(strips), most_doubtful(strips, 1, clock)
    except LiftstreamError:
        strips, doubt, worst = [], None, []
    moment = ""
    if worst:
        label = f"frame {worst[0].frame}: {worst[0].confidence:.2f}"
        moment = element("a", text(label), href=f"{href}#t={worst[0].seconds:.4f}")
    record, status = run.record, str(run.record.get("status"))
    failed = status != "done"
    cells = (
        element("a", text(name), href=href),
        element("span", text(status), class_=f"status {'bad' if failed else 'good'}"),
        text("-" if doubt is None else f"{doubt:.3f}"),
        moment,
        text(len(strips)),
        text(record.get("frames")),
        text(record.get("seconds")),
        text(len(record.get("warnings") or ())),
    )
    return _Row(-10.0 if failed else -(doubt or 0.0), cells)


def _davis_table(folder: Path, sequences: Mapping[str, Any]) -> Markup:
    rows = []
    for name, scores in sequences.items():
        values = (scores.get("J&F"), scores.get("J", {}).get("mean"), scores.get("F", {}).get("mean"))
        cells = (_link(folder, name, name), *(_score(value) for value in values), text(scores.get("frames")),
                 text(scores.get("objects")))  # fmt: skip
        rows.append(_Row(_rank(values[0]), cells))
    return _sorted_table(("sequence", "J&F", "J", "F", "frames", "objects"), rows)


def _tracking_table(folder: Path, sequences: Mapping[str, Any]) -> Markup:
    names = ("HOTA", "DetA", "AssA", "MOTA", "IDF1", "FP", "FN", "IDSW")
    rows = []
    for name, scores in sequences.items():
        cells = (_link(folder, f"timeline_{name}.png", name), *(_score(scores.get(column)) for column in names))
        rows.append(_Row(_rank(scores.get("HOTA")), cells))
    return _sorted_table(("sequence", *names), rows)


def _link(folder: Path, target: str, name: str) -> Markup:
    """A link to something inside the folder; plain text where it is not there or would lead out of it."""
    try:
        exists = path_inside(folder, target).exists()
    except OutputError:
        exists = False
    return element("a", text(name), href=quote(target)) if exists else text(name)


def _score(value: object) -> Markup:
    return text(f"{value:.3f}" if isinstance(value, float) else "-" if value is None else value)


def _rank(value: object) -> float:
    return float(value) if isinstance(value, int | float) else -1.0


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
