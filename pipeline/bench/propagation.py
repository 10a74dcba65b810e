"""``bench propagation``: windowed label propagation against a dense one, time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pipeline.bench.propagation_measures import Setting, compare, stream_memory
from pipeline.core.files import write_json_whole


def bench_propagation(
    height: Annotated[int, typer.Option(help="Rows of the grid.")] = 60,
    width: Annotated[int, typer.Option(help="Columns of the grid.")] = 107,
    contexts: Annotated[int, typer.Option(help="Context frames.")] = 8,
    channels: Annotated[int, typer.Option(help="Channels of the features.")] = 384,
    labels: Annotated[int, typer.Option(help="Channels of the label maps.")] = 3,
    radius: Annotated[int, typer.Option(help="Radius of the square window in cells.")] = 12,
    top_k: Annotated[int, typer.Option(help="Cells that vote.")] = 5,
    repeats: Annotated[int, typer.Option(help="Runs of each; the median counts.")] = 3,
    dense: Annotated[bool, typer.Option(help="Also the dense version; it needs gigabytes.")] = True,
    large: Annotated[bool, typer.Option(help="Also 119 x 213 cells, windowed only.")] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    stream_frames: Annotated[int, typer.Option(help="Also a synthetic video this long, for its memory.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the numbers.")] = None,
) -> None:
    """Time and peak memory of one frame's propagation: windowed, and dense with the window as a mask.

    Each is measured in a process of its own. Memory is what the call adds at its peak to what the inputs hold;
    the dense version's mask is made before, and neither timed nor counted.
    """
    setting = Setting(height, width, contexts, channels, labels, radius, top_k, repeats, device)
    report = compare(setting, dense=dense, large=large)
    if stream_frames:
        report["stream"] = stream_memory(stream_frames)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json_whole(output, report)
    _show(report)


def _show(report: dict[str, Any]) -> None:

    table = Table(title="one frame of label propagation", title_justify="left")
    for name in ("version", "grid"):
        table.add_column(name)
    for name in ("seconds", "added memory MiB", "peak resident MiB"):
        table.add_column(name, justify="right")
    for row in report["rows"]:
        memory = [f"{row[key] / 2**20:.0f}" for key in ("added_bytes", "peak_bytes")]
        table.add_row(row["version"], f"{row['height']} x {row['width']}", f"{row['seconds']:.3f}", *memory)
    console = Console()
    console.print(table)
    for row in report.get("stream", []):
        console.print(f"after {row['frames']} frames of a video: {row['resident_bytes'] / 2**20:.1f} MiB resident")
    if "speedup" in report:
        console.print(
            f"windowed: {report['speedup']:.1f} times faster, {report['memory_share']:.1%} of the memory; "
            f"largest difference of labels {report['max_difference']:.1e}"
        )
