"""What ``bench gpu`` measures. Every function takes the device, so that each runs on a CPU too."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

from pipeline.bench.extraction import matmul_peak
from pipeline.bench.gpu_trace import DEVICE_WORK, HOST_WORK, idle_time, intervals_of
from pipeline.core.device_stream import streams_of
from pipeline.core.errors import ConfigError, LiftstreamError
from pipeline.flow import FlowConfig, make_stages, run
from stages.decode import Decoder, probe
from stages.extract import Extractor
from stages.extract.backbone.device import autocast

Row = dict[str, Any]
_MEGABYTE = 1024 * 1024
_TESTS = Path(__file__).resolve().parents[2] / "tests"


def run_gpu_tests(seconds: float) -> Row:
    """The tests marked ``gpu``, in a process of their own."""
    if not _TESTS.is_dir():
        return {"passed": None, "summary": f"not run: there is no {_TESTS}; use a checkout of the source"}
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", str(_TESTS)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, cwd=_TESTS.parent, check=False
        )
    except subprocess.TimeoutExpired:
        return {"passed": False, "summary": f"not finished after {seconds:.0f} s"}
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]]
    return {"passed": done.returncode == 0, "summary": lines[-1], "output": done.stdout[-4000:]}


def copy_bandwidth(device: torch.device, megabytes: int, repeats: int) -> Row:
    """Gigabytes per second between pinned memory and the device; the best of some tries."""
    streams = streams_of(device)
    host = streams.pinned((megabytes * _MEGABYTE,), torch.uint8)
    host.zero_()
    values = torch.zeros(host.shape, dtype=torch.uint8, device=device)
    copies: dict[str, Callable[[], object]] = {
        # On the CPU an upload is the tensor itself, which would measure nothing.
        "upload": lambda: streams.upload(host) if streams.is_asynchronous else values.copy_(host),
        "download": lambda: streams.download(values, host),
    }
    return {
        f"{name}_gb_per_second": host.numel() / min(_seconds(copy, device, repeats)) / 1e9
        for name, copy in copies.items()
    }


def matmul_rate(device: torch.device, precision: torch.dtype, size: int) -> Row:
    """Operations per second of a large square product."""
    rate = matmul_peak(device, precision, size)
    return {"dtype": str(precision).removeprefix("torch."), "size": size, "tflops": rate / 1e12}


def decode_rate(source: Path, config: FlowConfig, frames: int) -> float:
    """Frames per second of decoding alone."""
    decoder = Decoder(config.decode, probe(source, config.decode))
    started = time.perf_counter()
    count = sum(1 for _ in islice(decoder(), frames))
    return count / (time.perf_counter() - started)


def decoder_rates(source: Path, config: FlowConfig, device: torch.device, frames: int) -> dict[str, float | None]:
    """Frames per second of every decoder alone; None for one that cannot be used here."""
    rates: dict[str, float | None] = {}
    where = ["cpu", str(device)] if device.type == "cuda" else ["cpu"]
    choices = [("pyav", "cpu"), *(("torchcodec", one) for one in where)]
    for backend, on in choices:
        changed = config.decode.model_copy(update={"backend": backend, "device": on})
        try:
            rate = decode_rate(source, config.model_copy(update={"decode": changed}), frames)
        except LiftstreamError:
            rate = None
        rates[f"{backend} on {on}"] = rate
    return rates


@torch.inference_mode()
def compiled_rate(extractor: Extractor, repeats: int) -> Row:
    """Frames per second of all of extract but the upload, plain and with ``extract.compile``."""
    size = extractor.report()["input_hw"]
    batch = torch.rand(extractor.batch_size, 3, *size, device=extractor.device)
    fast = Extractor(extractor.config.model_copy(update={"compile": True}))
    return {
        f"{name}_frames_per_second": len(batch)
        / median(_seconds(partial(one.model.forward, batch, is_full=True), extractor.device, repeats))
        for name, one in (("plain", extractor), ("compiled", fast))
    }


@torch.inference_mode()
def model_rate(extractor: Extractor, repeats: int) -> float:
    """Frames per second of the backbone's forward alone, on a batch that is on the device already.

    The pictures have the size that ``extractor`` used last.
    """
    batch = torch.rand(extractor.batch_size, 3, *extractor.report()["input_hw"], device=extractor.device)

    def forward() -> None:
        with autocast(extractor.device, extractor.precision):
            extractor.backbone(batch, extractor.facets, saliency=extractor.cue == "cls_attention")

    return len(batch) / median(_seconds(forward, extractor.device, repeats))


def stages_alone(source: Path, config: FlowConfig, extractor: Extractor, frames: int) -> list[Row]:
    """Each stage over the first frames with nothing beside it; its input is held in memory.

    The backbone stays warm: ``extractor`` has run before. ``seconds`` ends when the device is done.
    """
    rows, streams = [], streams_of(extractor.device)
    with tempfile.TemporaryDirectory() as folder:
        stages = make_stages(source, config, output=Path(folder) / "out", extractor=extractor, keep_features=True)
        held: list[Any] = []
        for name, stage in stages.present().items():
            streams.reset_peak()
            started = time.perf_counter()
            held = list(islice(stage(), frames)) if name == "decode" else list(stage(iter(held)))
            streams.synchronize()
            seconds = time.perf_counter() - started
            peak = streams.peak_bytes()
            rows.append(
                {
                    "stage": name, "frames": len(held), "seconds": seconds,
                    "frames_per_second": len(held) / seconds, "peak_memory_bytes": peak,
                }
            )  # fmt: skip
    return rows


def whole_flow(source: Path, config: FlowConfig, extractor: Extractor) -> Row:
    """One run of the flow: frames per second, what each stage was busy with, and the device's peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        result = run(source, Path(folder) / "out", config, extractor=extractor)
    return {
        "frames": result.frames,
        "seconds": result.seconds,
        "frames_per_second": result.frames / result.seconds,
        "bottleneck": result.bottleneck,
        "busy_seconds": {item.name: item.busy_seconds for item in result.statistics},
        "device_seconds": {item.name: item.device_seconds for item in result.statistics},
        "device_peak_memory_bytes": result.device_peak_memory_bytes,
    }


def idle_gaps(source: Path, config: FlowConfig, extractor: Extractor) -> Row:
    """Share of a run in which the device did nothing, from the profiler's trace; on a CPU, of the operators."""
    on_card = extractor.device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if on_card else [ProfilerActivity.CPU]
    with tempfile.TemporaryDirectory() as folder:
        # Operators of the stages' threads are recorded only when asked for; a card's work always is.
        every_thread = _ExperimentalConfig(profile_all_threads=True)
        with profile(activities=activities, experimental_config=every_thread) as profiler:
            run(source, Path(folder) / "out", config, extractor=extractor)
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        idle = idle_time(intervals_of(trace, DEVICE_WORK if on_card else HOST_WORK))
    return {
        "idle_share": idle.share,
        "span_seconds": idle.span_seconds,
        "busy_seconds": idle.busy_seconds,
        "longest_gap_seconds": idle.longest_gap_seconds,
        "of": "the card's kernels and copies" if on_card else "the host's operators",
    }


def agreement(source: Path, config: FlowConfig, device: torch.device, frames: int) -> Row:
    """How far the device's features are from the CPU's in fp32, and masks on the same features.

    Returns:
        ``max_difference`` and ``min_cosine`` of the main facet with the device in fp32, ``min_cosine_used`` in
        the precision of the config, and ``mask_agreement``: the share of pixels with the same label.
    """
    exact = {"device": "cpu", "precision": "fp32"}
    want = _features_and_masks(source, config, frames, exact)
    same = _features_and_masks(source, config, frames, exact | {"device": str(device)})
    used = _features_and_masks(source, config, frames, {"device": str(device)})
    pairs = list(zip(want, same, used, strict=True))
    if not pairs:
        raise ConfigError(f"{source}: no frames to compare; choose another part of the video")
    return {
        "frames": len(pairs),
        "max_difference": max(float((one[0] - two[0]).abs().max()) for one, two, _ in pairs),
        "min_cosine": min(_cosine(one[0], two[0]) for one, two, _ in pairs),
        "min_cosine_used": min(_cosine(one[0], three[0]) for one, _, three in pairs),
        "mask_agreement": min(float((one[1] == two[1]).float().mean()) for one, two, _ in pairs)
        if config.propagate.enabled
        else None,
    }


def _features_and_masks(
    source: Path, config: FlowConfig, frames: int, extract: dict[str, Any]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    changed = config.model_copy(update={"extract": config.extract.model_copy(update=extract)})
    stages = make_stages(source, changed, keep_features=True)
    assert stages.extract is not None
    packets: Any = stages.extract(islice(stages.decode(), frames))
    for stage in (stages.cosegment, stages.propagate):
        packets = packets if stage is None else stage(packets)
    found = []
    for packet in packets:
        labels = torch.zeros(0) if packet.labels is None else torch.from_numpy(packet.labels.index_mask.copy())
        found.append((packet.features.data.float().cpu(), labels))
    return found


def _cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    """The smallest cosine of the descriptors of a cell."""
    return float(torch.cosine_similarity(one, other, dim=0).min())


def _seconds(work: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Wall seconds of each call, the device's work included; the first call warms up."""
    streams, found = streams_of(device), list[float]()
    for turn in range(repeats + 1):
        streams.synchronize()
        started = time.perf_counter()
        work()
        streams.synchronize()
        if turn:
            found.append(time.perf_counter() - started)
    return found
