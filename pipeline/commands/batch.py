"""``batch``: many videos through the flow, on this machine or on a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.batch.batch import BatchOptions, EngineName, known_outcome, look_up, run_batch
from pipeline.batch.inputs import collect_jobs, take_shard
from pipeline.batch.jobs import VideoJob
from pipeline.batch.report import problem_lines, summary, worker_table
from pipeline.batch.storage import Place
from pipeline.commands.run import check_detector, sigterm_as_interrupt, write_overview
from pipeline.flow import load_flow_config

_MAX_OVERVIEW = 5_000


def batch(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...", help="Videos, folders, patterns, lists (.txt, .csv, .jsonl); paths or URLs."
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder or URL; gets one folder per video.")],
    config: Annotated[Path | None, typer.Option(help="YAML file, see configs/default.yaml.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A config value, e.g. extract.short_side=476."),
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION[:ARGUMENT]",
            help="Boxes to track from a detector, in videos without detections of their own.",
        ),
    ] = None,
    engine: Annotated[EngineName, typer.Option(help="Processes on this machine, or actors on Ray.")] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster: auto, ray://HOST:PORT, HOST:PORT or local. [default: RAY_ADDRESS]"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers. [default: one per GPU, or per group of cores]")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(min=0, help="GPUs of a worker; 0.5 puts two on one.")
    ] = None,
    cpus_per_worker: Annotated[int | None, typer.Option(min=1, help="Cores of a worker.")] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only every N-th video from the I-th on, for job arrays.")
    ] = None,
    max_attempts: Annotated[int, typer.Option(min=1, help="Attempts before a video is put aside.")] = 3,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what was put aside.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Do again what was made with another config.")
    ] = False,
    work: Annotated[
        str | None, typer.Option(help="Folder for results on their way to a URL. [default: a temporary one]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be done, and stop.")] = False,
) -> None:
    """Take many videos through the flow, each exactly once; run it again to go on where it was stopped."""
    flow_config = load_flow_config(config, overrides or [])
    if detector is not None:
        check_detector(flow_config)
    jobs = take_shard(collect_jobs(inputs, output, flow_config), shard)
    options = BatchOptions(
        output, flow_config, engine, address, workers, cpus_per_worker, gpus_per_worker, max_attempts,
        retry_failed, overwrite, shard, work, detector,
    )  # fmt: skip
    console = Console(soft_wrap=True)
    if dry_run:
        _list(console, jobs, options)
        return
    with sigterm_as_interrupt():
        report, driver = run_batch(jobs, options)
    console.print(summary(report, driver))
    if driver.loads:
        console.print(worker_table(report, driver))
    for line in problem_lines(report):
        console.print(line, markup=False, highlight=False)
    if not report.interrupted:
        _overview(console, len(jobs), options)
    raise typer.Exit(report.exit_code)


def _overview(console: Console, videos: int, options: BatchOptions) -> None:
    """Write ``index.html`` over OUT, unless it is behind a URL or would be too long to read."""
    folder = Place(options.output).path
    if folder is None:
        return
    if videos > _MAX_OVERVIEW:
        console.print(
            f"no overview of {videos} videos; 'review {folder}' writes one", markup=False, highlight=False
        )
        return
    write_overview(console, folder, options.config)


def _list(console: Console, jobs: list[VideoJob], options: BatchOptions) -> None:
    left = 0
    for job, outcome in look_up(jobs, known_outcome(options)):
        left += outcome is None
        state = "to do" if outcome is None else f"{outcome.status.replace('_', ' ')} {outcome.error or ''}".strip()
        console.print(f"{job.name}: {job.source}: {state}", markup=False, highlight=False)
    console.print(f"{left} of {len(jobs)} videos to do", markup=False, highlight=False)
