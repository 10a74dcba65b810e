"""``bench parts``: foreground without masks, temporal consistency and cost of co-segmentation, on DAVIS."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pipeline.core.config import load_config, parse_overrides
from pipeline.core.files import write_json_whole
from pipeline.core.records import Frame, Packet
from pipeline.evaluation.davis_metrics import region_similarity
from pipeline.evaluation.part_metrics import Consistency, part_consistency
from pipeline.formats.davis import DavisSequence, open_davis
from pipeline.formats.image_folder import load_image
from stages.cosegment import CosegmentConfig, Cosegmenter
from stages.extract import ExtractConfig, Extractor


def bench_parts(
    root: Annotated[Path, typer.Option(help="DAVIS folder; all objects count as one.")],
    variants: Annotated[
        str, typer.Option(help="Runs, separated by ;, each a comma-separated list of cosegment key=value.")
    ] = "mode=streaming;mode=two_pass",
    sequences: Annotated[str, typer.Option(help="Only these sequences, comma separated.")] = "",
    short_side: Annotated[int, typer.Option(help="Short side for the model, in pixels.")] = 476,
    saliency: Annotated[str, typer.Option(help="The extraction stage's cue.")] = "cls_attention",
    lift: Annotated[str, typer.Option(help="none, auto or a LiFT file.")] = "none",
    split: Annotated[str, typer.Option(help="List of sequences, under ImageSets/2016.")] = "val",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the numbers.")] = None,
) -> None:
    """Measure foreground J, parts' temporal consistency and the share of time beside extraction."""
    names = [name for name in sequences.split(",") if name]
    found = open_davis(root, "2016", split=split, sequences=names or None)
    extract = {"short_side": short_side, "saliency": saliency, "lift": lift}
    extractor = Extractor(load_config(ExtractConfig, extract, origin="bench parts"))
    runs = [tuple(run.split(",")) for run in variants.split(";")]
    configs = {
        " ".join(run): load_config(CosegmentConfig, parse_overrides(run), origin="bench parts") for run in runs
    }
    rows: dict[str, dict[str, Any]] = {name: {} for name in configs}
    for sequence in tqdm(found, desc="bench parts", unit="sequence"):
        packets, seconds = _extracted(sequence, extractor)
        for name, config in configs.items():
            rows[name][sequence.name] = _measure(sequence, packets, config, seconds)
    console = Console()
    for name, by_sequence in rows.items():
        table = Table(title=name, title_justify="left")
        for column in ("", "J", "consistency", "parts", "fits", "% of extraction"):
            table.add_column(column, justify="left" if not column else "right")
        by_sequence["mean"] = _mean(list(by_sequence.values()))
        for sequence_name, row in by_sequence.items():
            values = [f"{row['J']:.3f}", f"{row['consistency']:.3f}", f"{row['parts']:g}", f"{row['fits']:g}"]
            table.add_row(sequence_name, *values, f"{100 * row['cost']:.1f}")
        console.print(table)
    if output is not None:
        write_json_whole(output, rows)


def _extracted(sequence: DavisSequence, extractor: Extractor) -> tuple[list[Packet], float]:
    """A sequence's packets with features, and the CPU seconds that extraction took."""
    paths = [sequence.frames_dir / f"{name}.jpg" for name in sequence.frame_names]
    frames = [Frame(load_image(path), i, i / 24.0) for i, path in enumerate(paths)]
    started = time.process_time()
    packets = list(extractor(iter(frames)))
    return packets, time.process_time() - started


def _measure(
    sequence: DavisSequence, packets: list[Packet], config: CosegmentConfig, extract_seconds: float
) -> dict[str, float]:
    """Scores of one sequence, and co-segmentation's CPU time as a share of extraction's."""
    stage = Cosegmenter(config, descriptors="dinov2_vits14 key@11")
    started = time.process_time()
    labeled = list(stage(packets))
    cost = (time.process_time() - started) / max(extract_seconds, 1e-9)
    truths = [sequence.annotation(name) > 0 for name in sequence.frame_names]
    masks = [packet.parts.index_mask for packet in labeled if packet.parts is not None]
    consistency, numbers = Consistency(), set[int]()
    for i in range(1, len(masks)):
        images = labeled[i - 1].frame.image, labeled[i].frame.image
        consistency = consistency + part_consistency(images, (masks[i - 1], masks[i]), truths[i - 1])
    for mask in masks:
        numbers.update(np.unique(mask[mask > 0]).tolist())
    scores = [region_similarity(mask > 0, truth) for mask, truth in zip(masks, truths, strict=True)]
    return {
        "J": float(np.mean(scores)), "consistency": consistency.share, "parts": len(numbers),
        "fits": len(stage.report()["fits"]), "cost": cost,
    }  # fmt: skip


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
