"""Measuring windowed label propagation against a vectorized dense one, each in a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.bench.resident_memory import resident_bytes
from pipeline.core.device_stream import streams_of
from pipeline.core.records import Features, Frame, Packet, PatchGrid
from stages.propagate import Propagator
from stages.propagate.config import PropagateConfig, RefineConfig
from stages.propagate.propagation import Window, propagate_labels

LARGE_GRID = (119, 213)


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured; sizes in cells."""

    height: int = 60
    width: int = 107
    contexts: int = 8
    channels: int = 384
    labels: int = 3
    radius: int = 12
    top_k: int = 5
    repeats: int = 3
    device: str = "cpu"


def compare(setting: Setting, *, dense: bool = True, large: bool = True) -> dict[str, Any]:
    """Both versions on the same random features, and the windowed one alone on a grid too large for the other."""
    rows = [_measure("windowed", setting)]
    report: dict[str, Any] = {"setting": asdict(setting), "threads": torch.get_num_threads()}
    if dense:
        rows.append(_measure("dense", setting))
        report["speedup"] = rows[1]["seconds"] / rows[0]["seconds"]
        report["memory_share"] = rows[0]["added_bytes"] / max(rows[1]["added_bytes"], 1)
        samples = [torch.tensor(row["sample"]) for row in rows]
        report["max_difference"] = float((samples[0] - samples[1]).abs().max())
    if large:
        rows.append(_measure("windowed", replace(setting, height=LARGE_GRID[0], width=LARGE_GRID[1])))
    for row in rows:
        del row["sample"]
    return report | {"rows": rows}


def stream_memory(frames: int, *, checkpoints: int = 10) -> list[dict[str, int]]:
    """Resident memory while a synthetic video of ``frames`` frames is propagated, after every so many of them.

    Two objects drift over a grid of 12 x 16 cells; a corrected mask comes every 500 frames.
    """
    grid = PatchGrid((48, 64), (12, 16), (4.0, 4.0), (2.0, 2.0))
    generator = torch.Generator().manual_seed(0)
    looks = F.normalize(torch.randn(3, 32, generator=generator), dim=1)

    def mask(index: int) -> npt.NDArray[np.uint8]:
        values = np.zeros(grid.image_hw, np.uint8)
        left = index % 40
        values[4:20, left : left + 16] = 1
        values[28:44, 40 - left : 56 - left] = 2
        return values

    class Corrections(dict[int, npt.NDArray[np.uint8]]):
        def get(self, index: int, default: Any = None) -> Any:
            return mask(index) if index % 500 == 0 else default

    def packets() -> Iterator[Packet]:
        for index in range(frames):
            truth = mask(index)
            cells = grid.sample_nearest(torch.from_numpy(truth).long())
            data = looks[cells].permute(2, 0, 1) + 0.05 * torch.randn(32, *grid.grid_hw, generator=generator)
            image = np.repeat(truth[..., None], 3, axis=2)
            yield Packet(Frame(image, index, index / 24), features=Features(data, grid))

    every = max(1, frames // checkpoints)
    rows = []
    config = PropagateConfig(first_labels="nearest", refine=RefineConfig(enabled=False))
    for packet in Propagator(config, masks=Corrections())(packets()):
        done = packet.index + 1
        if done == min(200, frames) or done % every == 0:
            rows.append({"frames": done, "resident_bytes": resident_bytes()})
    return rows


def dense_labels(target: Tensor, contexts: Tensor, labels: Tensor, mask: Tensor, top_k: int) -> Tensor:
    """The reference's way, vectorized: all affinities of all cells, masked, thresholded at the k-th, normalized.

    Args:
        target: ``(C, hw)``.
        contexts: ``(n, C, hw)``.
        labels: ``(K, n * hw)``.
        mask: ``(hw, hw)`` of 0 and 1, context by target.
        top_k: Cells that vote.

    Returns:
        ``(K, hw)``.
    """
    affinity = torch.exp(torch.matmul(contexts.transpose(1, 2), target) / 0.1)
    affinity *= mask
    affinity = affinity.flatten(0, 1)
    threshold = affinity.topk(top_k, dim=0).values[-1]
    affinity[affinity < threshold] = 0
    affinity /= affinity.sum(dim=0, keepdim=True)
    return labels @ affinity


def make_inputs(setting: Setting) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Random normalized features (channels last in memory) and soft labels."""
    generator = torch.Generator().manual_seed(0)

    def features() -> Tensor:
        values = torch.randn(setting.height, setting.width, setting.channels, generator=generator)
        return F.normalize(values, dim=2).to(setting.device).permute(2, 0, 1)

    def soft() -> Tensor:
        shape = (setting.labels, setting.height, setting.width)
        return torch.randn(shape, generator=generator).softmax(0).to(setting.device)

    target = features()
    return target, [features() for _ in range(setting.contexts)], [soft() for _ in range(setting.contexts)]


def _windowed(setting: Setting) -> Callable[[], Tensor]:
    target, contexts, labels = make_inputs(setting)
    window = Window(setting.radius)
    return lambda: propagate_labels(target, contexts, labels, windows=window, top_k=setting.top_k)


def _dense(setting: Setting) -> Callable[[], Tensor]:
    target, contexts, labels = make_inputs(setting)
    cells = torch.arange(setting.height * setting.width, device=setting.device)
    row, column = cells // setting.width, cells % setting.width
    near_rows = (row[:, None] - row).abs() <= setting.radius
    mask = (near_rows & ((column[:, None] - column).abs() <= setting.radius)).to(torch.float32)
    flat_contexts = torch.stack(contexts).flatten(2)
    flat_labels = torch.stack(labels, dim=1).flatten(1)
    shape = (setting.labels, setting.height, setting.width)
    return lambda: dense_labels(target.flatten(1), flat_contexts, flat_labels, mask, setting.top_k).view(shape)


def _measure(version: str, setting: Setting) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, version, setting, torch.get_num_threads()))
    process.start()
    sender.close()
    try:
        row: dict[str, Any] = json.loads(receiver.recv())
    except EOFError:
        process.join()
        raise MemoryError(f"the {version} version's process ended with code {process.exitcode}") from None
    process.join()
    return row


def _child(sender: Any, version: str, setting: Setting, threads: int) -> None:
    torch.set_num_threads(threads)
    run = {"windowed": _windowed, "dense": _dense}[version](setting)
    seconds: list[float] = []
    with _PeakMemory(setting.device) as memory:
        for _ in range(setting.repeats):
            started = time.perf_counter()
            result = run()
            streams_of(torch.device(setting.device)).synchronize()
            seconds.append(time.perf_counter() - started)
    sample = result[:, :: max(1, setting.height // 8), :: max(1, setting.width // 8)].cpu().tolist()
    row = {
        "version": version,
        "height": setting.height,
        "width": setting.width,
        "seconds": statistics.median(seconds),
        "added_bytes": memory.peak - memory.before,
        "peak_bytes": memory.peak,
        "sample": sample,
    }
    sender.send(json.dumps(row))
    sender.close()


class _PeakMemory:
    """Highest resident memory while the block runs, sampled every few milliseconds; on CUDA the allocator's."""

    def __init__(self, device: str) -> None:
        self._streams = streams_of(torch.device(device))
        self._cuda = self._streams.is_asynchronous
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.before = 0
        self.peak = 0

    def __enter__(self) -> _PeakMemory:
        if self._cuda:
            self._streams.reset_peak()
        self.before = self.peak = self._now()
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, self._streams.peak_bytes() or self._now())

    def _now(self) -> int:
        if self._cuda:
            return torch.cuda.memory_allocated()
        return resident_bytes()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, self._now())
