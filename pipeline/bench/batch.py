"""``bench batch``: videos per second of local workers and of Ray against ``run`` in a loop."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from pipeline.batch.batch import BatchOptions, EngineName, make_engine
from pipeline.batch.driver import Driver
from pipeline.batch.jobs import Outcome, VideoJob, WorkerSettings
from pipeline.batch.worker import Worker
from pipeline.bench.batch_scale import bench_scale
from pipeline.core.errors import ConfigError
from pipeline.core.files import write_json_whole
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
_EMPTY_PER_VIDEO = 5
"""Videos of almost nothing for each full one: they are short, and their mean is to be exact."""
_TARGET_SECONDS: dict[EngineName, float] = {"local": 0.050, "ray": 0.200}


@dataclass(frozen=True, slots=True)
class EngineRate:
    """What one engine reaches.

    Attributes:
        engine: ``local`` or ``ray``.
        workers: Number of workers.
        videos_per_second: Full videos.
        loop_videos_per_second: The same with ``run`` in a loop.
        empty_seconds: Wall time per video of one frame with every stage off.
        loop_empty_seconds: The same with ``run`` in a loop, measured right before.
        driver_cpu_seconds: CPU time of the driver per such video.
    """

    engine: EngineName
    workers: int
    videos_per_second: float
    loop_videos_per_second: float
    empty_seconds: float
    loop_empty_seconds: float
    driver_cpu_seconds: float

    @property
    def cost_seconds(self) -> float:
        """The engine's own wall time per video: what is left when the work is shared out over the workers."""
        return max(0.0, self.empty_seconds - self.loop_empty_seconds / self.workers)


def bench_batch(
    videos: Annotated[int, typer.Option(min=1, help="Videos in each measurement.")] = 8,
    source: Annotated[Path, typer.Option(help="Video; the bundled clip by default.")] = DEMO_CLIP,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="In place of the tiny model's settings.")
    ] = None,
    ray: Annotated[bool, typer.Option(help="Measure Ray too, with actors on this machine.")] = True,
    scale: Annotated[
        bool, typer.Option("--scale", help="Measure instead what limits batches of up to 10 million videos.")
    ] = False,
    simulated: Annotated[int, typer.Option(min=100, help="--scale: simulated videos.")] = 100_000,
    video_seconds: Annotated[
        float | None, typer.Option(min=0, help="--scale: seconds per video, in place of measuring them here.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the numbers.")] = None,
) -> None:
    """Videos per second of 1 and 2 workers against run in a loop, and the cost of the engine per video."""
    torch.set_num_threads(1)
    console = Console(soft_wrap=True)
    if scale:
        config = load_flow_config(None, overrides or [])
        content = bench_scale(console, source, config, simulated, video_seconds)
    else:
        content = _bench_rates(console, videos, source, load_flow_config(None, overrides or _TINY), ray=ray)
    if output is not None:
        write_json_whole(output, content)
        console.print(f"numbers: {output}", markup=False, highlight=False)


def _bench_rates(console: Console, videos: int, source: Path, config: FlowConfig, *, ray: bool) -> dict[str, Any]:
    engines: list[tuple[EngineName, int]] = [("local", 1), ("local", 2)]
    if ray:
        engines += [("ray", 1), ("ray", 2)]
    rates, left_out = [], []
    with tempfile.TemporaryDirectory() as name:
        loop_cpu, worker_cpu = _cpu_of_empty(source, Path(name), videos * _EMPTY_PER_VIDEO)
        for engine, workers in engines:
            try:
                rates.append(_rate(engine, workers, source, Path(name), config, videos))
            except ConfigError as error:
                left_out.append(f"{engine}, {workers} workers: {error}")
    console.print(_rate_table(videos, rates))
    cpu = 1000 * (worker_cpu - loop_cpu)
    console.print(
        f"CPU time per video of almost nothing: run {1000 * loop_cpu:.1f} ms, the worker adds {cpu:.1f} ms to it "
        "(independent of what else this machine does)"
    )
    for line in left_out:
        console.print(line, markup=False, highlight=False)
    return {
        "videos": videos,
        "source": str(source),
        "run_cpu_seconds": loop_cpu,
        "worker_cpu_seconds": worker_cpu,
        "engines": [asdict(rate) | {"cost_seconds": rate.cost_seconds} for rate in rates],
        "left_out": left_out,
    }


def _rate_table(videos: int, rates: Sequence[EngineRate]) -> Table:
    title = f"{videos} videos; the workers are running when the clock starts. Engine: its own time per video"
    table = Table(title=title, title_justify="left")
    names = (
        "",
        "videos per second",
        "run in a loop",
        "ms per empty video",
        "run in a loop",
        "engine, ms",
        "target",
    )
    for name in (*names, "driver, CPU ms"):
        table.add_column(name, justify="right")
    for rate in rates:
        target = _TARGET_SECONDS[rate.engine]
        verdict = "met" if rate.cost_seconds < target else "missed"
        table.add_row(
            f"{rate.engine}, {rate.workers} worker{'s' * (rate.workers > 1)}",
            f"{rate.videos_per_second:.2f}",
            f"{rate.loop_videos_per_second:.2f}",
            _ms(rate.empty_seconds),
            _ms(rate.loop_empty_seconds),
            _ms(rate.cost_seconds),
            f"< {_ms(target)}: {verdict}",
            f"{1000 * rate.driver_cpu_seconds:.1f}",
        )
    return table


def _rate(
    engine: EngineName, workers: int, source: Path, folder: Path, config: FlowConfig, videos: int
) -> EngineRate:
    """Measure one engine, each figure right after that of ``run`` in a loop."""
    jobs, empty = _jobs(source, videos), _empty_config()
    many = _jobs(source, videos * _EMPTY_PER_VIDEO)
    loop, (full, _) = _in_a_loop(jobs, folder, config), _engine(jobs, folder, config, engine, workers)
    loop_empty, (little, cpu) = _in_a_loop(many, folder, empty), _engine(many, folder, empty, engine, workers)
    count = len(many)
    return EngineRate(
        engine, workers, videos / full, videos / loop, little / count, loop_empty / count, cpu / count
    )


def _jobs(source: Path, count: int) -> list[VideoJob]:
    return [VideoJob(f"video-{number}", str(source)) for number in range(count)]


def _empty_config() -> FlowConfig:
    """One frame, every stage off."""
    return load_flow_config(None, [*_OFF, "decode.end_seconds=0.04"])


def _cpu_of_empty(source: Path, folder: Path, count: int) -> tuple[float, float]:
    """CPU seconds per video of one frame: of ``run``, and of a worker, both in this process."""
    config = _empty_config()
    worker = Worker(WorkerSettings(str(folder / "worker"), config.model_dump(mode="json")))
    worker.do(VideoJob("first", str(source)))
    jobs = _jobs(source, count)
    started = time.process_time()
    for job in jobs:
        run(job.source, folder / "loop" / job.name, config)
    between = time.process_time()
    for job in jobs:
        worker.do(job)
    ended = time.process_time()
    for name in ("worker", "loop"):
        shutil.rmtree(folder / name)
    return (between - started) / count, (ended - between) / count


def _in_a_loop(jobs: Sequence[VideoJob], folder: Path, config: FlowConfig) -> float:
    extractor = Extractor(config.extract) if config.extract.enabled else None

    def loop(out: Path) -> None:
        for job in jobs:
            run(job.source, out / job.name, config, extractor=extractor)

    return _timed(folder, loop)


def _engine(
    jobs: Sequence[VideoJob], folder: Path, config: FlowConfig, engine: EngineName, workers: int
) -> tuple[float, float]:
    """Wall and the driver's CPU seconds once every worker has done one, so that loading is not counted."""
    out = folder / "out"
    options = BatchOptions(str(out), config, engine, None, workers, 1, 0)
    first = [VideoJob(f"first-{number}", jobs[0].source) for number in range(2 * workers)]
    times: list[tuple[float, float]] = []

    def note(job: VideoJob, outcome: Outcome) -> None:
        times.append((time.perf_counter(), time.process_time()))

    Driver(make_engine(options), on_outcome=note).run([*first, *jobs])
    (wall, cpu), (begun, begun_cpu) = times[-1], times[len(first) - 1]
    shutil.rmtree(out)
    return wall - begun, cpu - begun_cpu


def _timed(folder: Path, action: Callable[[Path], None]) -> float:
    out = folder / "out"
    started = time.perf_counter()
    action(out)
    seconds = time.perf_counter() - started
    shutil.rmtree(out)
    return seconds


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f}"
