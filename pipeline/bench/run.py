"""``bench runner``, ``bench run``, ``bench memory``: what the streaming costs, and whether memory stays flat."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from pipeline.bench.moving_squares import write_moving_squares
from pipeline.bench.resident_memory import resident_bytes
from pipeline.core.device_stream import streams_of
from pipeline.core.locations import DEMO_CLIP
from pipeline.core.records import Packet
from pipeline.core.runner import Pipeline
from pipeline.flow import FlowConfig, load_flow_config, make_stages, run
from pipeline.run_record import peak_memory_bytes, summary_table
from stages.extract import ExtractConfig, Extractor
from stages.extract.backbone.backbone import load_backbone
from stages.extract.backbone.device import pick_device

_MEGABYTE = 1024 * 1024
_BARE_BATCH = 4


def bench_runner(
    packets: Annotated[int, typer.Option(help="Packets to send through.")] = 50_000,
    queues: Annotated[int, typer.Option(help="Stages with a queue each.")] = 6,
    queue_depth: Annotated[int, typer.Option(help="Items that may wait between two stages.")] = 4,
) -> None:
    """Packets a second through stages that do nothing: the cost of the runner itself."""

    def nothing(items: Iterable[int]) -> Iterator[int]:
        yield from items

    started = time.perf_counter()
    with Pipeline(queue_depth) as pipe:
        items: Iterable[int] = range(packets)
        for number in range(queues):
            items = pipe.buffer(nothing(items), name=f"stage {number}")
        arrived = sum(1 for _ in items)
    seconds = time.perf_counter() - started
    Console().print(
        f"{arrived} packets through {queues} queues of {queue_depth}: {arrived / seconds:,.0f} a second"
    )


def bench_run(
    source: Annotated[Path, typer.Option(help="Video; the bundled clip by default.")] = DEMO_CLIP,
    config: Annotated[Path | None, typer.Option(help="YAML file.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
) -> None:
    """A run's wall time against the slowest stage alone, its CPU time over the cores, and timm's bare forward.

    The bare forward (fp32, batches of 4, the same number of pictures of the model's input size) is timed before
    and after the run; the ratio of frames per second uses their mean.
    """
    flow_config = load_flow_config(config, overrides or [])
    extractor = Extractor(flow_config.extract)
    with tempfile.TemporaryDirectory() as folder:
        alone = _stages_alone(source, flow_config, Path(folder) / "alone", extractor)
        facts = extractor.report()
        bare = [_bare_forward(flow_config.extract, facts["frames"], facts["input_hw"])]
        wall_seconds, cpu_seconds, table = _together(source, flow_config, Path(folder) / "together", extractor)
        bare.append(_bare_forward(flow_config.extract, facts["frames"], facts["input_hw"]))
    cores = len(os.sched_getaffinity(0))
    console = Console(soft_wrap=True)
    console.print(table)
    shown = Table(title="busy seconds of each stage run alone", title_justify="left")
    shown.add_column("stage")
    shown.add_column("seconds", justify="right")
    for name, seconds in alone.items():
        shown.add_row(name, f"{seconds:.2f}")
    console.print(shown)
    bound = max(max(alone.values()), cpu_seconds / cores)
    console.print(
        f"wall {wall_seconds:.1f} s; slowest stage alone {max(alone.values()):.1f} s; "
        f"CPU {cpu_seconds:.1f} s over {cores} cores = {cpu_seconds / cores:.1f} s; "
        f"wall is {wall_seconds / bound:.2f} times the larger"
    )
    frames, bare_seconds = facts["frames"], sum(bare) / len(bare)
    console.print(
        f"{frames / wall_seconds:.2f} frames per second; timm's forward alone in fp32 {frames / bare_seconds:.2f} "
        f"(before {frames / bare[0]:.2f}, after {frames / bare[1]:.2f}): ratio {bare_seconds / wall_seconds:.2f}"
    )


@torch.inference_mode()
def _bare_forward(config: ExtractConfig, frames: int, input_hw: tuple[int, int]) -> float:
    """Seconds of timm's own forward in fp32 over as many pictures of that size."""
    backbone = load_backbone(config.backbone, weights=config.weights, position="timm").to(
        pick_device(config.device)
    )
    pictures = torch.rand(_BARE_BATCH, 3, *input_hw, device=next(backbone.parameters()).device)
    backbone.vit.forward_features(pictures)
    started = time.perf_counter()
    for first in range(0, frames, _BARE_BATCH):
        backbone.vit.forward_features(pictures[: frames - first])
    streams_of(pictures.device).synchronize()
    return time.perf_counter() - started


def _stages_alone(source: Path, config: FlowConfig, folder: Path, extractor: Extractor) -> dict[str, float]:
    """Each stage over the whole input with nothing beside it; its input is held in memory."""
    folder.mkdir()
    stages = make_stages(source, config, output=folder, extractor=extractor).present()
    seconds: dict[str, float] = {}
    items: list[Any] = []
    for name, stage in stages.items():
        started = time.perf_counter()
        items = list(stage() if name == "decode" else stage(items))
        seconds[name] = time.perf_counter() - started
    return seconds


def _together(source: Path, config: FlowConfig, folder: Path, extractor: Extractor) -> tuple[float, float, Table]:
    cpu = time.process_time()
    result = run(source, folder, config, extractor=extractor)
    cpu = time.process_time() - cpu
    memory = f"peak memory of the process {peak_memory_bytes() / _MEGABYTE:.0f} MB"
    title = f"{result.frames} frames in {result.seconds:.1f} s; {memory}"
    return result.seconds, cpu, summary_table(title, result.statistics, result.bottleneck)


def bench_memory(
    frames: Annotated[int, typer.Option(help="Frames of the long run.")] = 2000,
    early: Annotated[int, typer.Option(help="Frame at which memory is read first.")] = 200,
) -> None:
    """Resident memory late in a long video against early, all stages on, with a tiny random backbone."""
    with tempfile.TemporaryDirectory() as folder:
        first, last = resident_over_time(Path(folder), frames=frames, early=early)
    Console().print(
        f"resident after {early} frames {first / _MEGABYTE:.1f} MB, "
        f"after {frames} frames {last / _MEGABYTE:.1f} MB: {(last - first) / _MEGABYTE:+.1f} MB"
    )


def resident_over_time(folder: Path, *, frames: int, early: int) -> tuple[int, int]:
    """Resident bytes when frame ``early`` and the last of ``frames`` leave a flow with all stages on.

    The video is made on the spot: two squares that move over a textured ground, so that every stage has work.
    """
    video = folder / "moving.mp4"
    write_moving_squares(video, frames)
    extract = ExtractConfig(
        backbone="vit_tiny_patch16_224", weights="random", short_side=96, facets=("key@11",), lift="none"
    )
    resident: dict[int, int] = {}

    def note(packet: Packet) -> None:
        if packet.index + 1 in (early, frames):
            gc.collect()
            resident[packet.index + 1] = resident_bytes()

    run(video, folder / "out", FlowConfig(extract=extract), on_packet=note)
    return resident[early], resident[frames]
