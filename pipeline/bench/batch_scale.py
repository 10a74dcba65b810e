"""What limits a batch of up to 10 million videos on up to 1,000 workers, from costs that are measured here.

Measured are the seconds of one video, the driver on simulated workers, the look-up of finished videos, and writing
the files of a video to this disk. The rest is arithmetic: the seconds are shared out over the workers; there is
one driver and one file server.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.assembly import FlowConfig
from pipeline.batch.batch import BatchOptions, known_outcome, look_up, run_batch
from pipeline.batch.engine import Event
from pipeline.batch.jobs import Outcome, VideoJob
from pipeline.core.files import write_bytes_whole
from pipeline.flow import run
from stages.extract import Extractor
from stages.write.folder import PRODUCER, RECORD

VIDEOS = (1_000, 100_000, 10_000_000)
WORKERS = (1, 32, 1_000)
_SIMULATED_WORKERS = 1_000
_LOOKED_UP = 2_000
_MEASURED_MEMORY = 20_000


@dataclass(frozen=True, slots=True)
class Costs:
    """What one video costs, each measured.

    Attributes:
        video_seconds: CPU time of a worker that has one core; what it takes there on an idle machine.
        driver_seconds: CPU time of the driver, its look-up in an empty OUT and the table included.
        look_up_seconds: Finding that a video is done, on this disk.
        storage_seconds: Writing and syncing its files, on this disk.
        files: Number of files in its results.
        memory_bytes: Of the driver.
        table_bytes: In ``batch.json``.
    """

    video_seconds: float
    driver_seconds: float
    look_up_seconds: float
    storage_seconds: float
    files: int
    memory_bytes: float
    table_bytes: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """A batch of one size.

    Attributes:
        videos: Number of videos.
        workers: Number of workers.
        seconds: Until the last video is done.
        limit: What takes longest: ``workers``, ``driver`` or ``storage``.
        driver_busy: Share of that time in which the driver is busy.
        storage_busy: Share in which one disk such as this one writes the results.
    """

    videos: int
    workers: int
    seconds: float
    limit: str
    driver_busy: float
    storage_busy: float


def forecast(costs: Costs, videos: int, workers: int) -> Forecast:
    """How long a batch takes, and what limits it.

    >>> forecast(Costs(10.0, 0.001, 0.0001, 0.01, 9, 0, 0), 1000, 10)
    Forecast(videos=1000, workers=10, seconds=1000.0, limit='workers', driver_busy=0.001, storage_busy=0.01)
    >>> forecast(Costs(1.0, 0.001, 0.0001, 0.01, 9, 0, 0), 1000, 1000).limit
    'storage'
    """
    busy = {
        "workers": costs.video_seconds * -(-videos // workers),
        "driver": costs.driver_seconds * videos,
        "storage": costs.storage_seconds * videos,
    }
    limit = max(busy, key=lambda name: busy[name])
    seconds = busy[limit]
    return Forecast(videos, workers, seconds, limit, busy["driver"] / seconds, busy["storage"] / seconds)


def bench_scale(
    console: Console, source: Path, config: FlowConfig, simulated: int, video_seconds: float | None
) -> dict[str, Any]:
    """Measure the costs, and print and return what limits a batch."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        driver_seconds, table_bytes = simulate(folder / "out", simulated)
        memory_bytes = memory_of_driver(folder / "memory", min(simulated, _MEASURED_MEMORY))
        measured_seconds = _time_of_video(source, folder / "video", config)
        sizes = [path.stat().st_size for path in (folder / "video").rglob("*") if path.is_file()]
        costs = Costs(
            measured_seconds if video_seconds is None else video_seconds,
            driver_seconds,
            _time_of_look_up(folder / "done", config),
            _time_of_storage(folder / "files", sizes),
            len(sizes),
            memory_bytes,
            table_bytes,
        )
    console.print(_cost_table(costs, simulated, source.name if video_seconds is None else "as given"))
    rows = [forecast(costs, videos, workers) for videos in VIDEOS for workers in WORKERS]
    console.print(_forecast_table(rows))
    console.print(_driver_table(costs, rows))
    return {"simulated": simulated, "costs": asdict(costs), "forecasts": [asdict(row) for row in rows]}


@dataclass(slots=True)
class SimulatedEngine:
    """Workers that are done with every video at once; for measuring the driver alone."""

    workers: int
    _idle: dict[str, None] = field(default_factory=dict)
    _events: list[Event] = field(default_factory=list)

    def start(self) -> None:
        """All workers are there at once."""
        self._idle = dict.fromkeys(f"worker-{number}" for number in range(self.workers))

    def starting(self) -> int:
        """None is ever on its way."""
        return 0

    def idle(self) -> list[str]:
        """Workers that have nothing to do."""
        return list(self._idle)

    def submit(self, worker: str, job: VideoJob) -> None:
        """Note that the video is done."""
        del self._idle[worker]
        outcome = Outcome(job.name, "done", frames=132, new_frames=132, seconds=60.0, worker=worker)
        self._events.append(Event("finished", worker, job, outcome))

    def wait(self, seconds: float) -> list[Event]:
        """Everything that has been submitted has ended."""
        events, self._events = self._events, []
        self._idle.update(dict.fromkeys(event.worker for event in events))
        return events

    def interrupt(self) -> None:
        """Nothing is under way."""

    def close(self) -> None:
        """Nothing is held."""


def simulate(out: Path, videos: int) -> tuple[float, float]:
    """A whole batch of simulated videos with an empty OUT.

    Returns:
        CPU seconds of the driver and bytes of ``batch.json``, per video.
    """
    started = time.process_time()
    jobs = [VideoJob(f"video-{number:08d}", f"/data/videos/video-{number:08d}.mp4") for number in range(videos)]
    options = BatchOptions(str(out), FlowConfig())
    report, _ = run_batch(jobs, options, engine=SimulatedEngine(_SIMULATED_WORKERS))
    assert report.counts["done"] == videos
    seconds = time.process_time() - started
    return seconds / videos, (out / "batch.json").stat().st_size / videos


def memory_of_driver(out: Path, videos: int) -> float:
    """Bytes that Python holds at most during a simulated batch, its list of videos included, per video."""
    tracemalloc.start()
    try:
        simulate(out, videos)
        return tracemalloc.get_traced_memory()[1] / videos
    finally:
        tracemalloc.stop()


def _time_of_video(source: Path, out: Path, config: FlowConfig) -> float:
    """CPU seconds of a video whose model is loaded already."""
    extractor = Extractor(config.extract) if config.extract.enabled else None
    started = time.process_time()
    run(source, out, config, extractor=extractor)
    return time.process_time() - started


def _time_of_storage(folder: Path, sizes: Sequence[int]) -> float:
    """Seconds for the files of a video, the fastest of five times: others use the disk too."""

    def write(out: Path) -> None:
        for number, size in enumerate(sizes):
            write_bytes_whole(out / str(number), bytes(size), sync=True)

    return min(_seconds(partial(write, folder / str(turn))) for turn in range(5))


def _time_of_look_up(out: Path, config: FlowConfig) -> float:
    """Seconds per finished video, looked up as a batch does, the fastest of five times.

    Each has a record of the usual length.
    """
    jobs = [VideoJob(str(number), f"/data/{number}.mp4") for number in range(_LOOKED_UP)]
    record = {"producer": PRODUCER, "status": "done", "frames": 132, "identity": {}, "filler": "x" * 8_000}
    for job in jobs:
        (out / job.name).mkdir(parents=True)
        (out / job.name / RECORD).write_text(json.dumps(record))
    os.sync()
    look = known_outcome(BatchOptions(str(out), config))
    return min(_seconds(lambda: sum(1 for _ in look_up(jobs, look))) for _ in range(5)) / len(jobs)


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _cost_table(costs: Costs, simulated: int, video: str) -> Table:
    table = Table(title="Measured per video", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row(f"worker of one core, CPU ({video})", duration(costs.video_seconds))
    table.add_row(f"driver, CPU ({simulated:,} simulated videos)", f"{1000 * costs.driver_seconds:.3f} ms")
    table.add_row("driver, videos per second of CPU", f"{1 / costs.driver_seconds:,.0f}")
    table.add_row("driver, memory", f"{costs.memory_bytes:.0f} bytes")
    table.add_row("look-up of a finished video", f"{1000 * costs.look_up_seconds:.3f} ms")
    table.add_row(f"its {costs.files} files, written and synced here", f"{1000 * costs.storage_seconds:.0f} ms")
    table.add_row("batch.json", f"{costs.table_bytes:.0f} bytes")
    return table


def _forecast_table(rows: list[Forecast]) -> Table:
    table = Table(title="Time of a batch, and what limits it", title_justify="left")
    table.add_column("videos", justify="right")
    for workers in WORKERS:
        table.add_column(f"{workers:,} worker{'s' * (workers > 1)}", justify="right")
    for videos in VIDEOS:
        cells = [f"{duration(row.seconds)}, {row.limit}" for row in rows if row.videos == videos]
        table.add_row(f"{videos:,}", *cells)
    return table


def _driver_table(costs: Costs, rows: list[Forecast]) -> Table:
    """What grows with the number of videos, and how busy the driver is with the most workers."""
    table = Table(title="The driver", title_justify="left")
    for name in (
        "videos",
        "memory",
        "batch.json",
        "look-up when all are done",
        f"busy at {WORKERS[-1]:,} workers",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        if row.workers == WORKERS[-1]:
            table.add_row(
                f"{row.videos:,}",
                _size(costs.memory_bytes * row.videos),
                _size(costs.table_bytes * row.videos),
                duration(costs.look_up_seconds * row.videos),
                f"{row.driver_busy:.3%}",
            )
    return table


def duration(seconds: float) -> str:
    """A time span in the unit that suits it.

    >>> duration(0.25), duration(90), duration(3 * 86400), duration(1e9)
    ('0.25 s', '90 s', '3.0 days', '31.7 years')
    """
    for unit, size, limit in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800), ("days", 86_400, 6.3e7)):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}" if unit == "s" else f"{seconds / size:.1f} {unit}"
    return f"{seconds / 31_557_600:.1f} years"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
