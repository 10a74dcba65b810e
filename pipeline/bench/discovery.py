"""``bench discovery``: the boxes of ``discover`` on frames of DAVIS, against the boxes of the true masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pipeline.core.arrays import box_iou
from pipeline.core.errors import ConfigError
from pipeline.core.files import write_json_whole
from pipeline.formats.davis import open_davis
from pipeline.formats.image_folder import load_image
from pipeline.images import image_sets
from pipeline.images.main_object import cells_box, choose_method, find_facets, object_cells

_HIT = 0.5


def bench_discovery(
    root: Annotated[Path, typer.Option(help="DAVIS folder; all objects of a frame count as one.")],
    every: Annotated[int, typer.Option(min=1, help="Use every n-th frame.")] = 10,
    split: Annotated[str, typer.Option(help="List of sequences, under ImageSets/2016.")] = "val",
    sequences: Annotated[str, typer.Option(help="Only these sequences, comma separated.")] = "",
    method: Annotated[str, typer.Option(help="auto, tokencut, objectness or discriminant.")] = "auto",
    threshold: Annotated[float, typer.Option(help="tokencut: cosine from which two cells are connected.")] = 0.2,
    short_side: Annotated[int, typer.Option(help="Short side for the model, in pixels.")] = 448,
    backbone: Annotated[str, typer.Option(help="Name of the backbone.")] = "dinov2_vits14",
    facet: Annotated[str, typer.Option(help="Descriptors.")] = "key@11",
    lift: Annotated[str, typer.Option(help="none, auto or a LiFT file.")] = "none",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the numbers.")] = None,
) -> None:
    """Measure CorLoc: the share of frames whose box overlaps the true one by half or more."""
    if method not in ("auto", "tokencut", "objectness", "discriminant"):
        raise ConfigError(f"--method {method}: must be auto, tokencut, objectness or discriminant")
    chosen: Any = choose_method(backbone, facet) if method == "auto" else method
    found = open_davis(root, "2016", split=split, sequences=[s for s in sequences.split(",") if s] or None)
    options = {
        "backbone": backbone, "facets": find_facets(chosen, facet), "short_side": short_side, "lift": lift,
        "saliency": "none",
    }  # fmt: skip
    extractor = image_sets.image_extractor(options, origin="bench discovery")
    overlaps: dict[str, list[float]] = {}
    with tqdm(total=sum(len(s.frame_names[::every]) for s in found), unit="frame") as bar:
        for sequence in found:
            for name in sequence.frame_names[::every]:
                bar.update()
                truth = sequence.annotation(name) == 1
                if not truth.any():
                    continue
                image = load_image(sequence.frames_dir / f"{name}.jpg")
                (described,) = image_sets.describe([(name, image)], extractor)
                cells = object_cells(described, chosen, facet=facet, threshold=threshold, backbone=backbone)
                box = cells_box(cells, described.grid)
                overlap = float(box_iou([box], [_box_of(truth)])[0, 0])
                overlaps.setdefault(sequence.name, []).append(overlap)
    _show(overlaps, chosen, output)


def _show(overlaps: dict[str, list[float]], method: str, output: Path | None) -> None:
    table = Table("", "frames", "right", "mean IoU", title=f"discover, {method}", title_justify="left")
    for name, values in overlaps.items():
        table.add_row(name, str(len(values)), str(sum(v >= _HIT for v in values)), f"{np.mean(values):.3f}")
    everything = [value for values in overlaps.values() for value in values]
    score = float(np.mean([value >= _HIT for value in everything]))
    table.add_row("all", str(len(everything)), f"{score:.3f}", f"{np.mean(everything):.3f}")
    Console().print(table)
    if output is not None:
        write_json_whole(output, {"method": method, "corloc": score, "iou": overlaps})


def _box_of(mask: npt.NDArray[np.bool_]) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
