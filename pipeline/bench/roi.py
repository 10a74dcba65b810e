"""``bench roi``: time of ROIAlign, of tracking one frame, and of extracting it for comparison."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from pipeline.core.device_stream import streams_of
from pipeline.core.files import write_json_whole
from pipeline.core.records import Detections, Frame
from pipeline.evaluation.box_sequences import TRACKING_CONFIG
from pipeline.flow import FlowConfig, load_flow_config
from stages.extract import Extractor
from stages.track import Tracker
from stages.track.roi_align import RoiAlignSpec, separable_roi_align

_IMAGE_HW = (480, 854)


def bench_roi(
    boxes: Annotated[int, typer.Option(min=1, help="Boxes on the large map.")] = 200,
    height: Annotated[int, typer.Option(min=1, help="Rows of the large map.")] = 120,
    width: Annotated[int, typer.Option(min=1, help="Columns of the large map.")] = 214,
    channels: Annotated[int, typer.Option(min=1, help="Channels of the large map.")] = 384,
    tracked: Annotated[int, typer.Option(min=1, help="Tracked boxes per frame.")] = 20,
    frames: Annotated[int, typer.Option(min=3, help="Frames that are tracked.")] = 20,
    config: Annotated[Path, typer.Option(help="YAML file.")] = TRACKING_CONFIG,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A config value.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the numbers.")] = None,
) -> None:
    """Seconds for ROIAlign on a large map, and for tracking a frame compared with extracting it."""
    flow = load_flow_config(config, overrides or [])
    report: dict[str, Any] = {
        "roi_align": {f"{side}x{side}": _roi_align(boxes, (height, width), channels, side) for side in (1, 3, 7)},
        "frame": _frame(flow, tracked, frames),
        "request": {"boxes": boxes, "map": [channels, height, width], "tracked": tracked, "frames": frames},
    }
    console = Console()
    for name, seconds in report["roi_align"].items():
        console.print(f"ROIAlign, {boxes} boxes to {name} on {height} x {width} x {channels}: {seconds:.3f} s")
    frame = report["frame"]
    console.print(
        f"a frame with {tracked} boxes: extraction {frame['extract_seconds']:.3f} s, tracking "
        f"{frame['track_seconds']:.4f} s ({frame['share']:.1%}) on {frame['device']}"
    )
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json_whole(output, report)


def _roi_align(count: int, map_hw: tuple[int, int], channels: int, side: int) -> float:
    """Median seconds for ``count`` random boxes, with corners anywhere on the map."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(*map_hw, channels, generator=generator).permute(2, 0, 1)
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values
    boxes = (corners * torch.tensor([map_hw[1], map_hw[0]])).reshape(count, 4)
    return _median_seconds(lambda: separable_roi_align(features, boxes, RoiAlignSpec((side, side))))


def _median_seconds(call: Callable[[], object], repeats: int = 5) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def _frame(flow: FlowConfig, tracked: int, count: int) -> dict[str, Any]:
    """Mean seconds of the extract and of the track stage, each run alone on the same frames."""
    extractor = Extractor(flow.extract)
    frames, device = _frames(count), extractor.device
    list(extractor(frames[:2]))
    packets, extract_seconds = _timed(extractor, frames, device)
    # The first pass warms up; the second is timed with a new tracker.
    for _ in range(2):
        tracker = Tracker(flow.track, detections=lambda frame: _moving_boxes(frame, tracked))
        _, track_seconds = _timed(tracker, packets, device)
    return {
        "extract_seconds": extract_seconds,
        "track_seconds": track_seconds,
        "share": track_seconds / extract_seconds,
        "device": str(device),
    }


def _timed(stage: Callable[[Any], Any], items: list[Any], device: torch.device) -> tuple[list[Any], float]:
    """What comes out of a stage, and its mean seconds per item."""

    def now() -> float:
        streams_of(device).synchronize()
        return time.perf_counter()

    started = now()
    results = list(stage(items))
    return results, (now() - started) / len(items)


def _frames(count: int) -> list[Frame]:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, *_IMAGE_HW, 3), dtype=np.uint8)
    return [Frame(image, index, index / 25) for index, image in enumerate(images)]


def _moving_boxes(frame: Frame, count: int) -> Detections:
    """Boxes from 40 to 200 pixels that move steadily with jitter, a few of them with low scores."""
    fixed = np.random.default_rng(1)
    size = fixed.uniform(40, 200, (count, 2))
    room = np.array(_IMAGE_HW[::-1]) - size
    corner = np.mod(fixed.uniform(0, 1, (count, 2)) * room + frame.index * fixed.uniform(-4, 4, (count, 2)), room)
    corner += np.random.default_rng(100 + frame.index).normal(0, 1, (count, 2))
    scores = np.where(fixed.uniform(0, 1, count) < 0.8, 0.9, 0.4)
    return Detections(
        np.concatenate([corner, corner + size], axis=1).astype(np.float32),
        scores.astype(np.float32),
        ("",) * count,
        np.zeros(count, np.int64),
    )
