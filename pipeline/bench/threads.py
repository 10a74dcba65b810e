"""``bench threads``: the whole flow with other sizes of the thread pools beside the default."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from dataclasses import astuple, dataclass, fields, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipeline.core.errors import LiftstreamError
from pipeline.core.locations import DEMO_CLIP
from pipeline.core.threads import ThreadPools, default_pools, set_thread_pools, usable_cores
from pipeline.flow import load_flow_config, run
from stages.extract import Extractor


@dataclass(frozen=True, slots=True)
class Timing:
    """One setting of the pools.

    Attributes:
        pools: The setting.
        wall_seconds: Best wall time of a run, models loaded.
        cpu_seconds: CPU time of that run.
    """

    pools: ThreadPools
    wall_seconds: float
    cpu_seconds: float


def bench_threads(
    source: Annotated[Path, typer.Option(help="Video; the bundled clip by default.")] = DEMO_CLIP,
    config: Annotated[Path | None, typer.Option(help="YAML file.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs per setting; the fastest counts.")] = 2,
) -> None:
    """Wall and CPU seconds of a run for sensible sizes of the pools; run it under taskset for fewer cores."""
    settings = sensible_pools(usable_cores())
    timings = [_measure(pools, source, config, overrides or [], repeats) for pools in settings]
    best, default = min(timing.wall_seconds for timing in timings), default_pools()
    table = Table(title=f"{usable_cores()} cores, best of {repeats} runs", title_justify="left")
    pools_shown = ("torch", "OpenCV", "FAISS", "x264", "BLAS", "images", "stages")
    for name in (*pools_shown, "wall s", "CPU s", "over best", ""):
        table.add_column(name, justify="right")
    for timing in sorted(timings, key=lambda timing: timing.wall_seconds):
        pools = timing.pools
        sizes = map(str, astuple(pools))
        shown = (f"{timing.wall_seconds:.1f}", f"{timing.cpu_seconds:.1f}", f"{timing.wall_seconds / best:.3f}")
        table.add_row(*sizes, *shown, "default" if pools == default else "")
    Console(soft_wrap=True).print(table)


def sensible_pools(cores: int) -> list[ThreadPools]:
    """The default; one thread each; all cores each; and the default with one pool at 1 or all cores."""
    default = default_pools(cores)
    changed = [
        replace(default, **{pool.name: size}) for pool in fields(ThreadPools) for size in sorted({1, cores})
    ]
    extremes = [ThreadPools(size, size, size, size) for size in (1, cores)]
    return list(dict.fromkeys([default, *extremes, *changed]))


def _measure(pools: ThreadPools, source: Path, config: Path | None, overrides: list[str], repeats: int) -> Timing:
    """Runs in a process of its own, as some pools keep the size they were made with."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, pools, source, config, overrides, repeats))
    process.start()
    sender.close()
    try:
        timing: Timing = receiver.recv()
    except EOFError as error:
        raise LiftstreamError(f"the run with {pools} ended early; its message is above") from error
    finally:
        process.join()
    return timing


def _child(
    sender: Connection, pools: ThreadPools, source: Path, config: Path | None, overrides: list[str], repeats: int
) -> None:
    flow = load_flow_config(config, overrides)
    extractor = Extractor(flow.extract)
    set_thread_pools(pools)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats):
            wall, cpu = time.perf_counter(), time.process_time()
            run(source, Path(folder) / str(number), flow, extractor=extractor)
            seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    sender.send(Timing(pools, *min(seconds)))
    sender.close()
