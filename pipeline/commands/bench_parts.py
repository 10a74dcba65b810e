"""``bench parts``: foreground without masks, temporal consistency and cost of co-segmentation, on DAVIS."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.formats.davis import DavisSequence
    from pipeline.records import Packet
    from stages.cosegment import CosegmentConfig
    from stages.extract import Extractor


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
    from rich.console import Console
    from rich.table import Table

    from pipeline.commands.image_sets import make_extractor, write_json
    from pipeline.config import load_config, parse_overrides
    from pipeline.formats.davis import open_davis
    from stages.cosegment import CosegmentConfig
    from stages.extract import ExtractConfig

    names = [name for name in sequences.split(",") if name]
    found = open_davis(root, "2016", split=split, sequences=names or None)
    extract = {"short_side": short_side, "saliency": saliency, "lift": lift}
    extractor = make_extractor(load_config(ExtractConfig, extract, origin="bench parts"))
    runs = [tuple(run.split(",")) for run in variants.split(";")]
    configs = {
        " ".join(run): load_config(CosegmentConfig, parse_overrides(run), origin="bench parts") for run in runs
    }
    rows: dict[str, dict[str, Any]] = {name: {} for name in configs}
    for sequence in found:
        for name, config in configs.items():
            rows[name][sequence.name] = _measure(sequence, extractor, config)
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
        write_json(output, rows)


def _measure(sequence: DavisSequence, extractor: Extractor, config: CosegmentConfig) -> dict[str, float]:
    """Scores of one sequence, and co-segmentation's CPU time as a share of extraction's."""
    import numpy as np

    from pipeline.evaluation.davis_metrics import region_similarity
    from pipeline.evaluation.part_metrics import Consistency, part_consistency
    from stages.cosegment import Cosegmenter

    stage = Cosegmenter(config)
    clock = {"extract": 0.0, "all": 0.0}
    scores, consistency, numbers = [], Consistency(), set()
    before: tuple[Packet, Any] | None = None
    packets = stage(_timed(sequence, extractor, clock))
    while True:
        started = time.process_time()
        packet = next(packets, None)
        clock["all"] += time.process_time() - started
        if packet is None:
            break
        assert packet.parts is not None
        truth = sequence.annotation(sequence.frame_names[packet.index]) > 0
        mask = packet.parts.index_mask
        scores.append(region_similarity(mask > 0, truth))
        numbers.update(np.unique(mask[mask > 0]).tolist())
        if before is not None and before[0].parts is not None:
            images = before[0].frame.image, packet.frame.image
            consistency = consistency + part_consistency(images, (before[0].parts.index_mask, mask), before[1])
        before = packet, truth
    cost = (clock["all"] - clock["extract"]) / max(clock["extract"], 1e-9)
    fits = len(stage.report()["fits"])
    return {
        "J": float(np.mean(scores)), "consistency": consistency.share, "parts": len(numbers), "fits": fits,
        "cost": cost,
    }  # fmt: skip


def _timed(sequence: DavisSequence, extractor: Extractor, clock: dict[str, float]) -> Iterator[Packet]:
    from pipeline.formats.image_folder import load_image
    from pipeline.records import Frame

    paths = (sequence.frames_dir / f"{name}.jpg" for name in sequence.frame_names)
    frames = (Frame(load_image(path), i, i / 24.0) for i, path in enumerate(paths))
    packets = extractor(frames)
    while True:
        started = time.process_time()
        packet = next(packets, None)
        clock["extract"] += time.process_time() - started
        if packet is None:
            return
        yield packet


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
