"""``bench stages``: CPU seconds per frame of each stage, run one after the other without threads.

CPU time hardly depends on what else the machine does, so the numbers can be compared on a busy machine. The input
of each stage is held in memory while it runs.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pipeline.core.locations import DEMO_CLIP
from pipeline.core.threads import ThreadPools, set_thread_pools
from pipeline.flow import FlowConfig, load_flow_config, make_stages


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage cost.

    Attributes:
        name: The stage.
        frames: Frames that it processed.
        cpu_seconds: CPU time of the process, all threads, while it ran alone.
    """

    name: str
    frames: int
    cpu_seconds: float

    @property
    def per_frame(self) -> float:
        """CPU seconds per frame."""
        return self.cpu_seconds / max(self.frames, 1)


def bench_stages(
    source: Annotated[Path, typer.Option(help="Video; the bundled clip by default.")] = DEMO_CLIP,
    frames: Annotated[int, typer.Option(min=1, help="Only the first frames.")] = 60,
    config: Annotated[Path | None, typer.Option(help="YAML file.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch and OpenCV.")] = 1,
) -> None:
    """CPU seconds per frame of each stage of a run, and their sum outside the backbone."""
    flow = load_flow_config(config, overrides or [])
    set_thread_pools(ThreadPools(torch=threads, opencv=threads, encoder=threads))
    with tempfile.TemporaryDirectory() as folder:
        costs = measure(source, flow, Path(folder), frames)
    table = Table(
        title=f"CPU seconds per frame, {costs[0].frames} frames, {threads} threads", title_justify="left"
    )
    for name in ("stage", "frames", "s per frame"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for cost in costs:
        table.add_row(cost.name, str(cost.frames), f"{cost.per_frame:.4f}")
    rest = sum(cost.per_frame for cost in costs if cost.name != "extract")
    table.add_row("all but extract", "", f"{rest:.4f}")
    Console(soft_wrap=True).print(table)


def measure(source: Path, config: FlowConfig, folder: Path, frames: int) -> list[StageCost]:
    """Run the stages of a config one after the other over the first ``frames`` frames of an input."""
    stages = make_stages(source, config, output=folder, keep_features=True)
    held: list[Any] = []
    costs = []
    for name, stage in stages.present().items():
        started = time.process_time()
        held = list(islice(stage(), frames)) if name == "decode" else list(stage(iter(held)))
        costs.append(StageCost(name, len(held), time.process_time() - started))
    return costs
