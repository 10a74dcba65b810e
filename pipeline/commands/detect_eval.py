"""``detect-eval``: COCO's scores of detections, from a results file or a detector."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pipeline.core.errors import ConfigError, LabelFileError
from pipeline.core.files import write_bytes_whole, write_json_whole
from pipeline.detect.coco_data import CocoSet, read_coco
from pipeline.detect.map_sources import read_view
from pipeline.detect.results import STATISTICS, coco_results, score_results
from pipeline.detect.settings import DetectorSettings
from pipeline.detect.weights_file import load_any_detector
from pipeline.formats.json_file import load_json
from pipeline.images import image_sets

_NAMES = {"bbox": "boxes", "segm": "masks"}


def detect_eval(
    annotations: Annotated[Path, typer.Option(help="The true objects: COCO JSON.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for scores.json and precision.png.")],
    results: Annotated[Path | None, typer.Option(help="A COCO results file to score.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Or a detector, to run it on the images.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="With --checkpoint: folder that the file names are relative to.")
    ] = None,
    lift: Annotated[Path | None, typer.Option(help="See detect.")] = None,
    weights: Annotated[str | None, typer.Option(help="See detect.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into an existing folder.")] = False,
) -> None:
    """Score boxes and masks as COCO does (average precision)."""
    if (results is None) == (checkpoint is None):
        raise ConfigError("give either --results or --checkpoint")
    if checkpoint is not None and images is None:
        raise ConfigError("--checkpoint needs --images, the folder of the images of the annotations")
    if results is not None:
        entries = _read_results(results)
    else:
        assert checkpoint is not None
        assert images is not None
        entries = _detect_all(checkpoint, read_coco(annotations, images), lift, weights, device)
    kinds = ("bbox", "segm") if any("segmentation" in entry for entry in entries) else ("bbox",)
    scores = score_results(annotations, entries, kinds=kinds)
    image_sets.claim_folder(output, overwrite=overwrite)
    if checkpoint is not None:
        write_json_whole(output / "results.json", entries)
    write_json_whole(output / "scores.json", scores)
    write_bytes_whole(output / "precision.png", plot_precision(scores))
    _show(scores, output)


def _read_results(path: Path) -> list[dict[str, Any]]:
    content = load_json(path)
    needed = {"image_id", "category_id", "bbox", "score"}
    if not isinstance(content, list) or not all(isinstance(e, dict) and needed <= set(e) for e in content):
        raise LabelFileError(f"{path}: expected a list of objects with {', '.join(sorted(needed))} (COCO results)")
    return content


def _detect_all(
    checkpoint: Path, data: CocoSet, lift: Path | None, weights: str | None, device: str
) -> list[dict[str, Any]]:
    detector = load_any_detector(checkpoint, lift=lift, backbone_weights=weights, device=device).detector
    settings = with_numbers_of(detector.settings, data, checkpoint)
    entries = []
    for image in tqdm(data.images, desc="detect", unit="image"):
        found = detector.detect([read_view(image, mirrored=False)])[0]
        entries += coco_results(found, image.image_id, settings)
    return [entry for entry in entries if entry["category_id"] >= 0]


def with_numbers_of(settings: DetectorSettings, data: CocoSet, checkpoint: Path) -> DetectorSettings:
    """The detector's settings with the category numbers of a data set, by name; -1, -2, ... for names it lacks.

    Raises:
        ConfigError: They have no class in common.
    """
    numbers = {name: number for number, name in data.categories.items()}
    found = tuple(numbers.get(name, -1 - place) for place, name in enumerate(settings.categories))
    if max(found) < 0:
        raise ConfigError(
            f"{checkpoint}: none of its classes ({', '.join(settings.categories[:6])}) is in {data.path} "
            f"({', '.join(list(numbers)[:6])})"
        )
    return settings.model_copy(update={"category_ids": found})


def _show(scores: dict[str, dict[str, Any]], output: Path) -> None:
    console = Console(soft_wrap=True)
    table = Table(title="COCO, percent", title_justify="left")
    table.add_column("")
    columns = list(STATISTICS[:6])
    for column in columns:
        table.add_column(column, justify="right")
    for kind, values in scores.items():
        table.add_row(_NAMES[kind], *(_percent(values[column]) for column in columns))
    console.print(table)
    classes = Table(title="AP per class, percent", title_justify="left")
    classes.add_column("class")
    for kind in scores:
        classes.add_column(_NAMES[kind], justify="right")
    for name in next(iter(scores.values()))["by_category"]:
        classes.add_row(name, *(_percent(values["by_category"][name]) for values in scores.values()))
    console.print(classes)
    console.print(f"wrote {output / 'scores.json'}")


def _percent(value: float) -> str:
    return "-" if value < 0 else f"{100 * value:.1f}"


def plot_precision(scores: dict[str, dict[str, Any]]) -> bytes:
    """Precision over recall at IoU 0.5 and 0.75, boxes and masks, as PNG."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    recall = np.linspace(0, 1, 101)
    for kind, color in (("bbox", "tab:blue"), ("segm", "tab:orange")):
        for iou, style in (("0.5", "-"), ("0.75", "--")):
            if kind in scores:
                axes.plot(
                    recall, scores[kind]["precision"][iou], style, color=color, label=f"{_NAMES[kind]}, IoU {iou}"
                )
    axes.set(xlabel="recall", ylabel="precision, mean over classes", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="lower left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
