"""``bench scaling``: how the cost of a run grows with length, frame size, cells, objects and tracks.

Costs are CPU seconds per frame, which hardly depend on what else the machine does. The exponent of an axis is the
slope of log cost over log size between its last two sizes: 1 is linear, below 1 is better. Each axis is measured
where the size matters: the length on the whole flow with a tiny backbone, the frame's size on the stages without
the backbone (whose input is resized to one size), cells and objects on propagation, tracks on the tracker.
"""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import av
import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pipeline.bench.moving_squares import write_moving_squares
from pipeline.bench.resident_memory import resident_bytes
from pipeline.bench.stages import measure
from pipeline.core.files import write_json_whole
from pipeline.core.records import Detections, Features, Frame, Packet, PatchGrid
from pipeline.core.threads import ThreadPools, set_thread_pools
from pipeline.evaluation.track_plots import save_figure
from pipeline.flow import FlowConfig, run
from stages.extract import ExtractConfig
from stages.propagate import PropagateConfig, Propagator
from stages.track import TrackConfig, Tracker

_TINY = ExtractConfig(backbone="vit_tiny_patch16_224", weights="random", short_side=96, lift="none")
_CHANNELS = 384


@dataclass(frozen=True, slots=True)
class Point:
    """The cost at one size of an axis.

    Attributes:
        size: How long, large or many.
        cpu_seconds: Per frame.
        resident_mb: Of the process at the end; None where it is not measured.
    """

    size: int
    cpu_seconds: float
    resident_mb: float | None = None


@dataclass(frozen=True, slots=True)
class Axis:
    """What is varied.

    Attributes:
        name: In words.
        unit: Of the sizes.
        what: What is measured.
        sizes: From small to large.
        quick: The same for ``--quick``.
        cost: Measures the cost at a size.
        most: The largest exponent that is as it should be.
    """

    name: str
    unit: str
    what: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    cost: Callable[[int], Point]
    most: float


def bench_scaling(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for scaling.json and scaling.png.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and smaller sizes.")] = False,
) -> None:
    """Cost against length, frame size, cells, objects and tracks: a table, JSON, a plot."""
    set_thread_pools(ThreadPools(torch=1))
    found = measure_axes(axes(), quick=quick)
    console = Console(soft_wrap=True)
    console.print(scaling_table(found))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_json_whole(output / "scaling.json", as_json(found))
        save_figure(plot(found), output / "scaling.png")
        console.print(f"wrote {output / 'scaling.json'} and {output / 'scaling.png'}")


def axes() -> tuple[Axis, ...]:
    """Everything that is varied."""
    return (
        Axis("length", "frames", "the flow, tiny backbone", (200, 400, 800, 1600), (60, 120), _length, 0.2),
        Axis("frame size", "rows (16:9)", "all but extract", (360, 720, 1440, 2160), (360, 720), _rows, 2.2),
        Axis("cells", "cells", "propagation", (700, 2800, 6420, 11200), (2800, 5600), _cells, 1.2),
        Axis("objects", "objects", "propagation", (1, 5, 20, 100), (1, 5), _objects, 1.1),
        Axis("tracks", "tracks", "tracking", (10, 100, 1000), (10, 100), _tracks, 1.3),
    )


def measure_axes(chosen: Sequence[Axis], *, quick: bool) -> list[tuple[Axis, list[Point]]]:
    """The cost at every size of every axis."""
    work = [(axis, size) for axis in chosen for size in (axis.quick if quick else axis.sizes)]
    points: dict[str, list[Point]] = {axis.name: [] for axis in chosen}
    for axis, size in tqdm(work, desc="bench scaling", unit="size"):
        points[axis.name].append(axis.cost(size))
    return [(axis, points[axis.name]) for axis in chosen]


def exponent(points: Sequence[Point]) -> float:
    """The slope of log cost over log size between the last two sizes.

    >>> round(exponent([Point(1, 5.0), Point(10, 1.0), Point(100, 100.0)]), 3)
    2.0
    """
    slopes = [
        math.log(max(b.cpu_seconds, 1e-9) / max(a.cpu_seconds, 1e-9)) / math.log(b.size / a.size)
        for a, b in pairwise(points)
    ]
    return slopes[-1]


def scaling_table(found: Sequence[tuple[Axis, Sequence[Point]]]) -> Table:
    """One row per size."""
    table = Table(title="CPU seconds per frame, one thread", title_justify="left")
    for name in ("axis", "size", "measured", "CPU s per frame", "resident MB", "exponent", "at most"):
        table.add_column(name, justify="left" if name in ("axis", "measured") else "right")
    for axis, points in found:
        for point in points:
            last = point is points[-1]
            memory = "" if point.resident_mb is None else f"{point.resident_mb:.0f}"
            slope = (f"{exponent(points):.2f}", f"{axis.most:.1f}") if last else ("", "")
            size = f"{point.size} {axis.unit}"
            table.add_row(axis.name, size, axis.what, f"{point.cpu_seconds:.4f}", memory, *slope)
    return table


def as_json(found: Sequence[tuple[Axis, Sequence[Point]]]) -> dict[str, object]:
    """The table's numbers."""
    return {
        axis.name: {
            "unit": axis.unit,
            "measured": axis.what,
            "points": [asdict(point) for point in points],
            "exponent": exponent(points),
            "exponent_at_most": axis.most,
        }
        for axis, points in found
    }


def plot(found: Sequence[tuple[Axis, Sequence[Point]]]) -> Figure:
    """Cost over size, both logarithmic, a panel per axis, with a line of slope 1 through the first point."""
    figure = Figure(figsize=(3.2 * len(found), 3), layout="constrained")
    for panel, (axis, points) in zip(np.atleast_1d(figure.subplots(1, len(found))), found, strict=True):
        sizes = [point.size for point in points]
        costs = [max(point.cpu_seconds, 1e-9) for point in points]
        panel.loglog(sizes, costs, "o-")
        panel.loglog(sizes, [costs[0] * size / sizes[0] for size in sizes], ":", color="gray")
        panel.set_title(f"{axis.name}, exponent {exponent(points):.2f}", fontsize=9)
        panel.set_xlabel(axis.unit)
        panel.set_ylabel("CPU seconds per frame")
    return figure


def _length(frames: int) -> Point:
    """A whole run of the moving squares; per frame, so that a flat line is linear in the length."""
    with tempfile.TemporaryDirectory() as folder:
        video = write_moving_squares(Path(folder) / "moving.mp4", frames)
        resident = [0]
        started = time.process_time()

        def note(packet: Packet) -> None:
            if packet.index == frames - 1:
                gc.collect()
                resident[0] = resident_bytes()

        run(video, Path(folder) / "out", FlowConfig(extract=_TINY), on_packet=note)
        seconds = time.process_time() - started
    return Point(frames, seconds / frames, resident[0] / 2**20)


def _rows(rows: int, frames: int = 16) -> Point:
    """The stages around the backbone on a noisy video of this many rows with two moving squares."""
    columns = rows * 16 // 9 // 2 * 2
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "large.mp4"
        _write_large(video, rows, columns, frames)
        costs = measure(video, FlowConfig(extract=_TINY), Path(folder) / "out", frames)
    return Point(rows, sum(cost.per_frame for cost in costs if cost.name != "extract"))


def _write_large(path: Path, rows: int, columns: int, frames: int) -> None:
    noise = np.random.default_rng(0).integers(60, 120, (rows // 8, columns // 8, 3), np.uint8)
    ground = np.asarray(cv2.resize(noise, (columns, rows), interpolation=cv2.INTER_CUBIC), np.uint8)
    side = rows // 4
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = columns, rows, "yuv420p"
        for index in range(frames):
            image = ground.copy()
            left = side // 2 + index * rows // 100
            image[side : 2 * side, left : left + side] = (220, 60, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def _cells(cells: int) -> Point:
    """Propagation of one object on a grid of this many cells, window and frame the same."""
    rows = max(2, round(math.sqrt(cells * 4 / 7)))
    return Point(cells, _propagation((rows, round(cells / rows)), objects=1))


def _objects(objects: int) -> Point:
    """Propagation of this many objects on 20 x 35 cells."""
    return Point(objects, _propagation((20, 35), objects=objects))


def _propagation(grid_hw: tuple[int, int], *, objects: int, warm: int = 8, frames: int = 4) -> float:
    """CPU seconds per frame of propagation once its memory is full."""
    grid = PatchGrid.covering((280, 490), grid_hw)
    propagator = Propagator(PropagateConfig(), masks={})
    packets = _drifting(grid, warm + frames)
    for _ in range(warm):
        packet = next(packets)
        propagator.step(packet, _tiles(grid.image_hw, objects) if packet.index == 0 else None)
    started = time.process_time()
    for packet in packets:
        propagator.step(packet)
    return (time.process_time() - started) / frames


def _drifting(grid: PatchGrid, frames: int) -> Iterator[Packet]:
    """Random descriptors that move by one cell per frame."""
    generator = torch.Generator().manual_seed(0)
    height, width = grid.grid_hw
    field = F.normalize(torch.randn(_CHANNELS, height, width + frames, generator=generator), dim=0)
    image = np.random.default_rng(0).integers(0, 255, (*grid.image_hw, 3), np.uint8)
    for index in range(frames):
        yield Packet(Frame(image, index, index / 25), Features(field[:, :, index : index + width], grid))


def _tiles(image_hw: tuple[int, int], objects: int) -> npt.NDArray[np.uint8]:
    """An index mask of so many rectangles side by side, with background between them."""
    mask = np.zeros(image_hw, np.uint8)
    columns = math.ceil(math.sqrt(objects * image_hw[1] / image_hw[0]))
    rows = math.ceil(objects / columns)
    height, width = image_hw[0] // rows, image_hw[1] // columns
    for number in range(objects):
        top, left = number // columns * height, number % columns * width
        mask[top : top + max(1, height * 3 // 4), left : left + max(1, width * 3 // 4)] = number + 1
    return mask


def _tracks(tracks: int, warm: int = 3, frames: int = 5) -> Point:
    """Tracking of this many boxes that move slowly over a frame of 1080 x 1920."""
    grid = PatchGrid.covering((1080, 1920), (20, 35))
    tracker = Tracker(TrackConfig())
    generator = np.random.default_rng(0)
    corner = generator.uniform(0, 1, (tracks, 2)) * (1820, 980)
    speed = generator.normal(0, 2, (tracks, 2))
    spent = 0.0
    for packet in _drifting(grid, warm + frames):
        low = corner + packet.index * speed
        boxes = np.hstack([low, low + np.array([60, 80])]).astype(np.float32)
        scores, ids = np.ones(tracks, np.float32), np.zeros(tracks, np.int64)
        started = time.process_time()
        tracker.step(packet, Detections(boxes, scores, ("",) * tracks, ids))
        spent += time.process_time() - started if packet.index >= warm else 0.0
    return Point(tracks, spent / frames)
