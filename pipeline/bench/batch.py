"""``bench batch``: videos per second of local workers and of Ray against ``run`` in a loop."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from pipeline.batch.batch import BatchOptions, EngineName, make_engine
from pipeline.batch.driver import Driver
from pipeline.batch.jobs import Outcome, VideoJob
from pipeline.core.errors import ConfigError
from pipeline.core.locations import DEMO_CLIP
from pipeline.flow import FlowConfig, load_flow_config, run
from stages.extract import Extractor

_TINY = (
    "extract.backbone=vit_tiny_patch16_224",
    "extract.weights=random",
    "extract.short_side=112",
    "extract.facets=[key@11]",
    "decode.end_seconds=1.0",
)
_OFF = tuple(f"{stage}.enabled=false" for stage in ("extract", "cosegment", "propagate", "track", "annotate"))


def bench_batch(
    videos: Annotated[int, typer.Option(min=1, help="Videos in each measurement.")] = 8,
    source: Annotated[Path, typer.Option(help="Video; the bundled clip by default.")] = DEMO_CLIP,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="In place of the tiny model's settings.")
    ] = None,
    ray: Annotated[bool, typer.Option(help="Measure Ray too, with actors on this machine.")] = True,
) -> None:
    """Videos per second of 1 and 2 workers against run in a loop, and the cost of the engine per video."""
    torch.set_num_threads(1)
    config = load_flow_config(None, overrides or _TINY)
    empty = load_flow_config(None, [*_OFF, "decode.end_seconds=0.04"])
    engines: list[tuple[EngineName, int]] = [("local", 1), ("local", 2)]
    if ray:
        engines += [("ray", 1), ("ray", 2)]
    table = Table(title=f"{videos} videos; the workers are running when the clock starts", title_justify="left")
    for name in ("", "videos per second", "ms per video of almost nothing", "of them the engine's"):
        table.add_column(name, justify="right")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs = [VideoJob(f"video-{number}", str(source)) for number in range(videos)]
        alone = _in_a_loop(jobs, folder, empty)
        rate = videos / _in_a_loop(jobs, folder, config)
        table.add_row("run in a loop", f"{rate:.2f}", _ms(alone / videos), "-")
        for engine, workers in engines:
            try:
                full = _engine(jobs, folder, config, engine, workers)
                little = _engine(jobs, folder, empty, engine, workers)
            except ConfigError as error:
                table.add_row(f"{engine}, {workers}", str(error), "", "")
                continue
            cost = little / videos - alone / videos / workers
            table.add_row(
                f"{engine}, {workers} workers", f"{videos / full:.2f}", _ms(little / videos), _ms(max(0.0, cost))
            )
    Console(soft_wrap=True).print(table)


def _in_a_loop(jobs: Sequence[VideoJob], folder: Path, config: FlowConfig) -> float:
    extractor = Extractor(config.extract) if config.extract.enabled else None

    def loop(out: Path) -> None:
        for job in jobs:
            run(job.source, out / job.name, config, extractor=extractor)

    return _timed(folder, loop)


def _engine(jobs: Sequence[VideoJob], folder: Path, config: FlowConfig, engine: EngineName, workers: int) -> float:
    """Seconds for the jobs once every worker has done one, so that loading the model is not counted."""
    out = folder / "out"
    options = BatchOptions(str(out), config, engine, None, workers, 1, 0)
    first = [VideoJob(f"first-{number}", jobs[0].source) for number in range(2 * workers)]
    times: list[float] = []

    def note(job: VideoJob, outcome: Outcome) -> None:
        times.append(time.perf_counter())

    Driver(make_engine(options), on_outcome=note).run([*first, *jobs])
    seconds = times[-1] - times[len(first) - 1]
    shutil.rmtree(out)
    return seconds


def _timed(folder: Path, action: Callable[[Path], None]) -> float:
    out = folder / "out"
    started = time.perf_counter()
    action(out)
    seconds = time.perf_counter() - started
    shutil.rmtree(out)
    return seconds


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f}"
