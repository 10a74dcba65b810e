"""A batch from its inputs to its table: what is left to do, the driver, and the records at the end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pipeline.assembly import FlowConfig
from pipeline.batch.driver import Driver
from pipeline.batch.engine import Engine
from pipeline.batch.jobs import Outcome, VideoJob, WorkerSettings
from pipeline.batch.local_engine import LocalEngine, gpus_here, plan_workers
from pipeline.batch.records import BATCH_FOLDER, PutAside, own_file
from pipeline.batch.report import BatchReport, Display
from pipeline.batch.storage import Place
from pipeline.batch.worker import identify_detector, outcome_of_finished
from pipeline.core.errors import ConfigError
from pipeline.core.threads import usable_cores

EngineName = Literal["local", "ray"]
_LOOKERS = 16
_LOOKED_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How a batch is run.

    Attributes:
        output: OUT, path or URL.
        config: The flow's config.
        engine: ``local`` or ``ray``.
        address: Of the Ray cluster; None for ``RAY_ADDRESS`` or one on this machine.
        workers: Number of workers; None for what the engine finds.
        cpus_per_worker: Cores of each worker.
        gpus_per_worker: GPUs of each worker; may be a fraction.
        max_attempts: Attempts per video.
        retry_failed: Try again what was put aside by an earlier batch.
        overwrite: Redo what was made with another config.
        shard: ``I/N``, for the names of this batch's own files.
        work: Folder on each worker's machine for results on their way to a URL.
        detector: What ``--detector`` names; finds boxes in videos that have none of their own.
    """

    output: str
    config: FlowConfig
    engine: EngineName = "local"
    address: str | None = None
    workers: int | None = None
    cpus_per_worker: int | None = None
    gpus_per_worker: float | None = None
    max_attempts: int = 3
    retry_failed: bool = False
    overwrite: bool = False
    shard: str | None = None
    work: str | None = None
    detector: str | None = None


def make_engine(options: BatchOptions) -> Engine:
    """The engine that the options ask for.

    Raises:
        InputError: Options that this machine or the cluster cannot fulfil; Ray is not installed or not there.
    """
    settings = WorkerSettings(
        output=options.output,
        config=options.config.model_dump(mode="json"),
        overwrite=options.overwrite,
        work=options.work,
        threads=options.cpus_per_worker,
        detector=options.detector,
    )
    share = options.gpus_per_worker
    if share is not None and share > 1 and share != int(share):
        raise ConfigError(f"--gpus-per-worker {share:g}: must be at most 1, or a whole number")
    if options.engine == "local":
        plan = plan_workers(
            options.workers,
            options.cpus_per_worker,
            options.gpus_per_worker,
            gpus=gpus_here(),
            cores=usable_cores(),
        )
        label = f"{options.shard.replace('/', '-of-')}-" if options.shard else ""
        return LocalEngine(settings, plan, _logs(options), label)
    try:
        from pipeline.batch.ray_engine import RayEngine, connect
    except ImportError as error:
        raise ConfigError("--engine ray needs Ray: pip install 'liftstream[ray]'") from error
    connect(options.address)
    return RayEngine(
        settings,
        workers=options.workers,
        cpus_per_worker=options.cpus_per_worker,
        gpus_per_worker=options.gpus_per_worker,
    )


def _logs(options: BatchOptions) -> Path:
    place = Place(options.output)
    if place.path is None:
        return Path(tempfile.gettempdir()) / f"liftstream-batch-logs-{os.getpid()}"
    return place.path.absolute() / BATCH_FOLDER / "logs"


def look_up(
    jobs: Iterable[VideoJob], look: Callable[[VideoJob], Outcome | None]
) -> Iterator[tuple[VideoJob, Outcome | None]]:
    """Jobs with their outcome where OUT has one already, in order; looked up in parallel, not far ahead."""
    rest = iter(jobs)
    with ThreadPoolExecutor(_LOOKERS) as pool:
        while some := list(islice(rest, _LOOKED_AT_ONCE)):
            yield from zip(some, pool.map(look, some), strict=True)


def known_outcome(options: BatchOptions) -> Callable[[VideoJob], Outcome | None]:
    """A function that says what OUT knows of a video: finished, put aside, or (None) to be done."""
    place, detector = Place(options.output), identify_detector(options.detector)
    put_aside = PutAside(place, options.config, detector)

    def look(job: VideoJob) -> Outcome | None:
        found = outcome_of_finished(place, job, options.config, overwrite=options.overwrite, detector=detector)
        if found is None and not options.retry_failed:
            found = put_aside.find(job)
        return found

    return look


def run_batch(
    jobs: Sequence[VideoJob], options: BatchOptions, *, engine: Engine | None = None
) -> tuple[BatchReport, Driver]:
    """Do every job that is not done yet.

    Args:
        jobs: The batch, or this shard of it.
        options: How.
        engine: Used in place of the one the options ask for.

    Returns:
        The report, which is also written to OUT, and the driver with the workers' loads.

    Raises:
        InputError: Options that cannot be fulfilled.
        WorkersError: No worker can be started.
    """
    place, report = Place(options.output), BatchReport(len(jobs))
    put_aside = PutAside(place, options.config, identify_detector(options.detector))
    engine = engine or make_engine(options)
    place.write(b"liftstream batch\n", BATCH_FOLDER, "README")
    with Display(len(jobs)) as display:

        def known(job: VideoJob, outcome: Outcome) -> None:
            report.add(job, outcome)
            display.step()

        def finished(job: VideoJob, outcome: Outcome) -> None:
            if outcome.status == "put_aside":
                put_aside.add(job, outcome)
            known(job, outcome)

        def left() -> Iterator[VideoJob]:
            for job, outcome in look_up(jobs, known_outcome(options)):
                if outcome is None:
                    yield job
                else:
                    known(job, outcome)

        driver = Driver(engine, options.max_attempts, finished)
        driver.on_event = display.updater(driver)
        try:
            driver.run(left())
        except KeyboardInterrupt:
            report.interrupted = True
        finally:
            report.finish()
            about: dict[str, Any] = {"producer": "liftstream", "engine": options.engine, "shard": options.shard}
            report.write(place, own_file(options.shard), report.values(driver, about))
    return report, driver
