"""``bench parts-equivariance``: whether parts keep their numbers in mirrored and enlarged frames."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pipeline.core.config import load_config, parse_overrides
from pipeline.core.files import write_json_whole
from pipeline.core.image_views import enlarged, mirrored
from pipeline.core.records import Frame
from pipeline.evaluation.part_equivariance import compare_views
from pipeline.formats.davis import DavisSequence, open_davis
from pipeline.formats.image_folder import load_image
from stages.cosegment import CosegmentConfig, Cosegmenter
from stages.extract import ExtractConfig, Extractor

_FACET = "key@11"
_MIN_PART_SHARE = 0.02


def bench_parts_equivariance(
    root: Annotated[Path, typer.Option(help="DAVIS folder; all objects count as one.")],
    sequences: Annotated[str, typer.Option(help="Only these sequences, comma separated.")] = "",
    frames: Annotated[int, typer.Option(min=1, help="Frames of each sequence.")] = 30,
    settings: Annotated[str, typer.Option("--set", help="Comma-separated cosegment key=value.")] = "",
    short_side: Annotated[int, typer.Option(help="Short side for the model, in pixels.")] = 280,
    split: Annotated[str, typer.Option(help="List of sequences, under ImageSets/2016.")] = "val",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the numbers.")] = None,
) -> None:
    """Run frames, their mirror images and their enlarged middles as one video and compare the parts."""
    config = load_config(CosegmentConfig, parse_overrides([s for s in settings.split(",") if s]), origin="--set")
    names = [name for name in sequences.split(",") if name]
    extract = load_config(ExtractConfig, {"short_side": short_side, "facets": (_FACET,)}, origin="bench")
    extractor = Extractor(extract)
    rows = {
        sequence.name: _measure(sequence, frames, extractor, config)
        for sequence in tqdm(open_davis(root, "2016", split=split, sequences=names or None), unit="sequence")
    }
    rows["mean"] = {key: float(np.mean([row[key] for row in rows.values()])) for key in next(iter(rows.values()))}
    table = Table("", "mirrored", "covering", "enlarged", "covering", "parts")
    for name, row in rows.items():
        table.add_row(name, *(f"{value:.3f}" for value in row.values()))
    Console().print(table)
    if output is not None:
        write_json_whole(output, rows)


def _measure(
    sequence: DavisSequence, count: int, extractor: Extractor, config: CosegmentConfig
) -> dict[str, float]:
    names = sequence.frame_names[:count]
    images = [load_image(sequence.frames_dir / f"{name}.jpg") for name in names]
    views = [*images, *map(mirrored, images), *map(enlarged, images)]
    extractor.reset()
    packets = extractor(Frame(view, index, index / 24) for index, view in enumerate(views))
    stage = Cosegmenter(config, descriptors=f"{extractor.config.backbone} {_FACET}")
    parts = [packet.parts.index_mask for packet in stage(list(packets)) if packet.parts is not None]
    truths = [sequence.annotation(name) > 0 for name in names]
    mirror, zoom = compare_views(parts, truths)
    visible = [
        int((np.bincount(part[truth], minlength=256)[1:] > _MIN_PART_SHARE * truth.sum()).sum())
        for part, truth in zip(parts, truths, strict=False)
    ]
    return {
        "mirrored": mirror.share, "mirrored_coverage": mirror.coverage, "enlarged": zoom.share,
        "enlarged_coverage": zoom.coverage, "parts": float(np.mean(visible)),
    }  # fmt: skip
