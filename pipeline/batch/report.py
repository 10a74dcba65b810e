"""What a batch says about itself: the display while it runs, the table at the end, and ``batch.json``."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.table import Table
from tqdm import tqdm

from pipeline.batch.driver import Driver
from pipeline.batch.jobs import Outcome, Status, VideoJob
from pipeline.batch.storage import Place
from pipeline.core.files import path_inside, whole_file

_SLOWEST = 2
_SHOWN_PROBLEMS = 20
_FINAL: tuple[Status, ...] = ("done", "damaged", "skipped", "put_aside", "busy", "interrupted")
_WORDS = {"put_aside": "put aside", "busy": "in another batch's hands"}


class BatchReport:
    """Collects the outcomes of a batch.

    Args:
        total: Videos of the batch.

    Attributes:
        outcomes: One per video that came to an end, in that order.
        counts: Videos by status.
        interrupted: Whether Ctrl-C stopped the batch.
        seconds: Wall time of the batch.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.outcomes: list[Outcome] = []
        self.counts: Counter[Status] = Counter()
        self.interrupted = False
        self.seconds = 0.0
        self._started = time.monotonic()

    def add(self, job: VideoJob, outcome: Outcome) -> None:
        """Take in the end of a video."""
        self.outcomes.append(outcome)
        self.counts[outcome.status] += 1

    def finish(self) -> None:
        """Stop the clock."""
        self.seconds = time.monotonic() - self._started

    @property
    def exit_code(self) -> int:
        """0: every video is done; 130: interrupted; 1 otherwise."""
        if self.interrupted:
            return 130
        whole = sum(o.status == "done" or (o.status == "skipped" and o.error is None) for o in self.outcomes)
        return 0 if whole == self.total else 1

    def problems(self) -> list[Outcome]:
        """The videos with something wrong."""
        return [outcome for outcome in self.outcomes if outcome.error is not None]

    def values(self, driver: Driver | None, about: dict[str, Any]) -> dict[str, Any]:
        """Everything but the videos, as JSON values."""
        loads = {} if driver is None else driver.loads
        frames = 0 if driver is None else driver.frames
        return {
            **about,
            "interrupted": self.interrupted,
            "total": self.total,
            "counts": {status: self.counts[status] for status in _FINAL},
            "not_reached": self.total - len(self.outcomes),
            "frames": frames,
            "seconds": round(self.seconds, 3),
            "frames_per_second": round(frames / self.seconds, 3) if self.seconds else None,
            "warnings": [] if driver is None else driver.warnings,
            "workers": {
                name: {
                    "videos": load.videos,
                    "frames": load.frames,
                    "busy_share": round(min(1.0, load.busy_seconds / max(self.seconds, 1e-9)), 3),
                }
                for name, load in loads.items()
            },
        }

    def write(self, place: Place, name: str, values: dict[str, Any]) -> None:
        """Write ``batch.json``: one line per video, so that it can be read with line tools too.

        Raises:
            OutputError: It cannot be written.
        """
        if place.path is None:
            place.write("".join(self._lines(values)).encode(), name)
            return
        with whole_file(path_inside(place.path, name), sync=True) as partial:
            with partial.open("w", encoding="utf-8") as file:
                file.writelines(self._lines(values))

    def _lines(self, values: dict[str, Any]) -> Any:
        yield json.dumps(values, indent=1)[:-2] + ',\n "videos": [\n'
        last = len(self.outcomes) - 1
        for number, outcome in enumerate(self.outcomes):
            row = {
                "name": outcome.name,
                "status": outcome.status,
                "error": outcome.error,
                "frames": outcome.frames,
                "frames_per_second": _rate(outcome),
                "seconds": round(outcome.seconds, 3),
                "attempts": outcome.attempts,
                "worker": outcome.worker,
            }
            yield f"  {json.dumps(row)}{',' if number < last else ''}\n"
        yield " ]\n}\n"


def summary(report: BatchReport, driver: Driver | None) -> Table:
    """The table at the end: what came of the videos, and how busy each worker was."""
    frames = 0 if driver is None else driver.frames
    rate = f", {frames / report.seconds:.1f} frames per second" if frames and report.seconds else ""
    table = Table(
        title=f"{report.total} videos, {frames} frames in {report.seconds:.1f} s{rate}", title_justify="left"
    )
    table.add_column("videos")
    table.add_column("number", justify="right")
    for status in _FINAL:
        if report.counts[status]:
            table.add_row(_WORDS.get(status, status), str(report.counts[status]))
    if missing := report.total - len(report.outcomes):
        table.add_row("not reached", str(missing))
    return table


def worker_table(report: BatchReport, driver: Driver) -> Table:
    """Videos, frames and busy share of each worker, the busiest first."""
    table = Table()
    table.add_column("worker")
    for name in ("videos", "frames", "busy"):
        table.add_column(name, justify="right")
    loads = sorted(driver.loads.items(), key=lambda item: -item[1].busy_seconds)
    for name, load in loads[:_SHOWN_PROBLEMS]:
        share = min(1.0, load.busy_seconds / max(report.seconds, 1e-9))
        table.add_row(name, str(load.videos), str(load.frames), f"{share:.0%}")
    return table


def problem_lines(report: BatchReport) -> list[str]:
    """One line per video with something wrong, the first ones only."""
    problems = report.problems()
    lines = [
        f"{o.name}: {_WORDS.get(o.status, o.status)}: {o.error}"
        + (f" ({o.attempts} attempts, {o.worker})" if o.attempts > 1 else "")
        for o in problems[:_SHOWN_PROBLEMS]
    ]
    if len(problems) > _SHOWN_PROBLEMS:
        lines.append(f"... and {len(problems) - _SHOWN_PROBLEMS} more, see batch.json")
    return lines


class Display:
    """A bar on stderr: videos and frames over all workers, and the slowest videos under way.

    Args:
        total: Videos of the batch.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._bar = tqdm(total=total, unit="video", file=sys.stderr, mininterval=0.5, dynamic_ncols=True)

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def step(self) -> None:
        """One more video has come to an end."""
        self._bar.update()

    def updater(self, driver: Driver) -> Callable[[], None]:
        """A function that shows how far the driver's workers are."""
        shown_warnings = 0

        def update() -> None:
            nonlocal shown_warnings
            for warning in driver.warnings[shown_warnings:]:
                tqdm.write(f"warning: {warning}", file=sys.stderr)
            shown_warnings = len(driver.warnings)
            slowest = sorted(driver.running.values(), key=lambda running: running.since)[:_SLOWEST]
            now = time.monotonic()
            shown = ", ".join(f"{r.job.name[:30]} {r.frames} frames in {now - r.since:.0f} s" for r in slowest)
            idle = "waiting for another batch" if driver.waits_for_others else "waiting for a worker"
            state = f"; slowest: {shown}" if shown else f"; {idle}" if self._bar.n < self._total else ""
            self._bar.set_postfix_str(f"{driver.frames} frames{state}", refresh=False)
            self._bar.refresh() if now % 1 < 0.5 else None

        return update


def _rate(outcome: Outcome) -> float | None:
    return round(outcome.new_frames / outcome.seconds, 3) if outcome.new_frames and outcome.seconds else None
