"""``review``: the page of a run, or of a folder of runs, in a browser; or a Rerun recording."""

from __future__ import annotations

import time
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.core.errors import InputError, OutputError
from pipeline.formats.run_folder import RECORD, RunFolder, find_runs
from pipeline.report import write_index, write_report
from pipeline.report.rerun_file import write_rerun


def review(
    folder: Annotated[
        Path, typer.Argument(metavar="OUT", help="Output folder of a run, or a folder of such folders.")
    ],
    rrd: Annotated[Path | None, typer.Option(help="Write a Rerun recording to this file instead.")] = None,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
) -> None:
    """Look at a run: writes report.html (for many runs index.html too) and opens it."""
    console = Console(soft_wrap=True)
    if rrd is not None:
        write_rerun(RunFolder(folder), rrd)
        console.print(f"wrote {rrd}; open it with: rerun {rrd}", markup=False, highlight=False)
        return
    begun = time.process_time()
    is_run = (folder / RECORD).is_file()
    page = write_report(folder) if is_run else _many(folder)
    cost = _cost(folder, time.process_time() - begun) if is_run else ""
    console.print(f"wrote {page}{cost}", markup=False, highlight=False)
    if browser and not webbrowser.open(page.resolve().as_uri()):
        console.print("no browser found here; open the file above in one", markup=False, highlight=False)


def _cost(folder: Path, cpu_seconds: float) -> str:
    """What the page took beside the run's wall time, which its processor time is at least about."""
    seconds = RunFolder(folder).record.get("seconds")
    if not isinstance(seconds, int | float) or seconds <= 0:
        return ""
    share = 100 * cpu_seconds / seconds
    return f" in {cpu_seconds:.2f} s of processor time, {share:.1f} % of the run's {seconds:.1f} s"


def _many(folder: Path) -> Path:
    """Reports for the runs inside, and the index; a run that is damaged is left to the index to show."""
    try:
        runs = find_runs(folder)
    except OutputError:
        runs = []
    for run in runs:
        try:
            write_report(run.folder)
        except InputError as error:
            typer.echo(f"warning: {error}", err=True)
    return write_index(folder)
