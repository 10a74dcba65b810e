"""``bench gpu``: everything that only a card can prove, in one command."""

from __future__ import annotations

import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markdown import Markdown
from tqdm import tqdm

from pipeline.bench import gpu_measures as measures
from pipeline.core.errors import ConfigError
from pipeline.core.files import whole_file, write_json_whole
from pipeline.core.locations import DEMO_CLIP
from pipeline.flow import FlowConfig, load_flow_config
from stages.decode import probe
from stages.extract import Extractor
from stages.extract.backbone.device import pick_device

FLOW_AIM = 0.8
"""The flow's rate over the smaller of the model's and decode's."""
IDLE_AIM = 0.05
"""Largest share of a run without work on the card."""
COSINE_AIM = 0.999
"""Smallest cosine between a descriptor of the CPU and of the device, both in fp32."""
MASK_AIM = 0.99
"""Smallest share of pixels with the same label as on the CPU."""

Row = dict[str, Any]


def bench_gpu(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for bench_gpu.json and bench_gpu.md.")],
    source: Annotated[Path, typer.Option(help="Video; the bundled clip by default.")] = DEMO_CLIP,
    frames: Annotated[int, typer.Option(min=2, help="Only the first frames.")] = 132,
    sizes: Annotated[str, typer.Option(help="Values of extract.short_side.")] = "280,476,728",
    batches: Annotated[str, typer.Option(help="Values of extract.batch_size.")] = "8,16,32",
    config: Annotated[Path | None, typer.Option(help="YAML file.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    device: Annotated[str, typer.Option(help="cuda, cuda:N; cpu runs the same steps small.")] = "cuda",
    tests: Annotated[bool, typer.Option(help="Run the tests marked gpu first.")] = True,
) -> None:
    """Tests, copy and matmul rates, every stage and the flow at several sizes, idle gaps, agreement with the CPU.

    Ends with 1 where a gpu test fails or the device's results are not the CPU's; aims that are missed are said.
    """
    where = pick_device(device)
    overrides = [*(overrides or []), f"extract.device={where}"]
    flow = _first_frames(source, load_flow_config(config, overrides), frames)
    grid = [(size, batch) for size in _numbers(sizes, "--sizes") for batch in _numbers(batches, "--batches")]
    found = measure(source, flow, where, grid, frames=frames, tests=tests)
    output.mkdir(parents=True, exist_ok=True)
    write_json_whole(output / "bench_gpu.json", found)
    text = markdown(found)
    with whole_file(output / "bench_gpu.md") as file:
        file.write_text(text, encoding="utf-8")
    Console(soft_wrap=True).print(Markdown(text))
    if not (found["checks"]["tests"] and found["checks"]["agreement"]):
        raise typer.Exit(1)


def measure(
    source: Path, flow: FlowConfig, device: torch.device, grid: list[tuple[int, int]], *, frames: int, tests: bool
) -> Row:
    """All measurements, with a progress bar.

    Args:
        source: The video.
        flow: The config, whose decode section ends after ``frames``.
        device: Where.
        grid: Pairs of ``extract.short_side`` and ``extract.batch_size``.
        frames: Frames of every run.
        tests: Whether to run the gpu tests.
    """
    on_card = device.type == "cuda"
    precision = Extractor(flow.extract).precision
    found: Row = {"machine": _machine(device), "date": _now(), "source": source.name, "frames": frames}
    steps: list[tuple[str, Callable[[], Any]]] = [
        ("copies", lambda: measures.copy_bandwidth(device, 256 if on_card else 4, 10)),
        ("matmul", lambda: measures.matmul_rate(device, precision, 8192 if on_card else 256)),
        ("decode_frames_per_second", lambda: measures.decode_rate(source, flow, frames)),
        ("decoders", lambda: measures.decoder_rates(source, flow, device, frames)),
        ("agreement", lambda: measures.agreement(source, flow, device, min(frames, 16))),
    ]
    if tests and on_card:
        steps.insert(0, ("tests", lambda: measures.run_gpu_tests(3600)))
    found["tests"] = {"passed": None, "summary": "not run"}
    with tqdm(total=len(steps) + len(grid), desc="bench gpu", unit="step") as bar:
        for name, step in steps:
            bar.set_postfix_str(name)
            found[name] = step()
            bar.update()
        found["runs"] = []
        for size, batch in grid:
            bar.set_postfix_str(f"{size} px, batch {batch}")
            found["runs"].append(_run(source, flow, size, batch, frames, found["decode_frames_per_second"]))
            bar.update()
    found["checks"] = checks(found, tests_needed=tests and on_card)
    return found


def checks(found: Row, *, tests_needed: bool) -> dict[str, bool]:
    """Which aims are met: the tests, agreement with the CPU, the flow's rate and the card's idle share."""
    agreed, measured = found["agreement"], [run for run in found["runs"] if "skipped" not in run]
    masks = agreed["mask_agreement"]
    return {
        "tests": found["tests"]["passed"] is True or not tests_needed,
        "agreement": agreed["min_cosine"] >= COSINE_AIM and (masks is None or masks >= MASK_AIM),
        "rate": bool(measured) and max(run["flow_over_bound"] for run in measured) >= FLOW_AIM,
        "idle": bool(measured) and min(run["idle"]["idle_share"] for run in measured) < IDLE_AIM,
    }


def _run(source: Path, flow: FlowConfig, size: int, batch: int, frames: int, decode_rate: float) -> Row:
    """One size and batch; a size that the card's memory cannot hold is said to be skipped."""
    changed = {"short_side": size, "batch_size": batch, "input_hw": None, "long_side_multiple": None}
    config = flow.model_copy(update={"extract": flow.extract.model_copy(update=changed)})
    row: Row = {"short_side": size, "batch_size": batch}
    extractor = Extractor(config.extract)
    measures.stages_alone(source, config, extractor, min(frames, 2 * batch))  # warms up
    row["stages"] = measures.stages_alone(source, config, extractor, frames)
    if extractor.batch_size != batch:
        return {**row, "skipped": f"memory holds a batch of {extractor.batch_size}"}
    row["model_frames_per_second"] = measures.model_rate(extractor, 10)
    if extractor.device.type == "cuda" and config.extract.repair == "none":  # on a CPU compiling takes minutes
        row["forward"] = measures.compiled_rate(extractor, 10)
    row["flow"] = measures.whole_flow(source, config, extractor)
    row["idle"] = measures.idle_gaps(source, config, extractor)
    row["flow_over_bound"] = row["flow"]["frames_per_second"] / min(row["model_frames_per_second"], decode_rate)
    return row


def markdown(found: Row) -> str:
    """The measurements as a page."""
    copies, matmul, agreed = found["copies"], found["matmul"], found["agreement"]
    lines = [
        "# bench gpu", "",
        f"{found['machine']['device']}, torch {found['machine']['torch']}, {found['date']}; "
        f"{found['frames']} frames of {found['source']}.", "",
        f"- gpu tests: {found['tests']['summary']}",
        f"- copies: {copies['upload_gb_per_second']:.1f} GB/s up, "
        f"{copies['download_gb_per_second']:.1f} GB/s down",
        f"- matmul ({matmul['dtype']}, {matmul['size']}): {matmul['tflops']:.2f} TFLOP/s",
        f"- decode alone: {found['decode_frames_per_second']:.1f} frames/s; by decoder: {_decoders(found)}",
        f"- agreement with the CPU over {agreed['frames']} frames: largest difference "
        f"{agreed['max_difference']:.2e}, smallest cosine {agreed['min_cosine']:.5f} in fp32 and "
        f"{agreed['min_cosine_used']:.5f} in {matmul['dtype']}, same labels {_share(agreed['mask_agreement'])}",
        "",
        "| short side | batch | model frames/s | flow frames/s | flow over min(model, decode) | idle | bottleneck "
        "| peak MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    lines += [_line(run) for run in found["runs"]]
    for run in found["runs"]:
        lines += ["", f"## Stages alone, {run['short_side']} px, batch {run['batch_size']}", ""]
        if "forward" in run:
            plain, fast = (run["forward"][f"{name}_frames_per_second"] for name in ("plain", "compiled"))
            lines += [f"Backbone, saliency and LiFT: {plain:.1f} frames/s, compiled {fast:.1f}.", ""]
        lines += ["| stage | frames/s | peak MB |", "| --- | --- | --- |"]
        lines += [
            f"| {row['stage']} | {row['frames_per_second']:.1f} | {_megabytes(row['peak_memory_bytes'])} |"
            for row in run["stages"]
        ]
    met = ", ".join(f"{name} {'met' if good else 'NOT met'}" for name, good in found["checks"].items())
    return "\n".join([*lines, "", f"Aims: {met}.", ""])


def _decoders(found: Row) -> str:
    rates = found["decoders"].items()
    return ", ".join(f"{name} {'not here' if rate is None else f'{rate:.1f}'}" for name, rate in rates)


def _line(run: Row) -> str:
    start = f"| {run['short_side']} | {run['batch_size']} "
    if "skipped" in run:
        return f"{start}| {run['skipped']} | | | | | |"
    flow = run["flow"]
    return (
        f"{start}| {run['model_frames_per_second']:.1f} | {flow['frames_per_second']:.1f} "
        f"| {run['flow_over_bound']:.2f} | {_share(run['idle']['idle_share'])} | {flow['bottleneck']} "
        f"| {_megabytes(flow['device_peak_memory_bytes'])} |"
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:.0f}"


def _numbers(text: str, option: str) -> list[int]:
    """Positive whole numbers between commas.

    >>> _numbers("8,16", "--batches")
    [8, 16]
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(
            f"{option} '{text}' must be positive whole numbers with commas between, for example 8,16"
        )
    return [int(part) for part in parts]


def _first_frames(source: Path, flow: FlowConfig, frames: int) -> FlowConfig:
    """The config with decode ending after so many frames."""
    start = flow.decode.start_seconds
    end = start + (frames - 0.5) / float(probe(source, flow.decode).frame_rate)
    return flow.model_copy(update={"decode": flow.decode.model_copy(update={"end_seconds": end})})


def _machine(device: torch.device) -> Row:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": f"{device} ({name})", "torch": str(torch.__version__), "platform": platform.platform()}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")
