"""``train-detect``: train a detector's pyramid and heads on a labeled set in COCO's layout."""

from __future__ import annotations

import io
import itertools
import json
import resource
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pipeline.core.config import load_config
from pipeline.core.errors import ConfigError
from pipeline.core.files import write_bytes_whole
from pipeline.core.options import listed_numbers
from pipeline.detect.coco_data import CocoSet, read_coco
from pipeline.detect.feature_maps import FeatureMaps, PlainMaps, build_maps
from pipeline.detect.map_sources import CachedMaps, LiveMaps, MapSource, Sample
from pipeline.detect.model import Detector, pretty_settings
from pipeline.detect.settings import DetectorSettings
from pipeline.detect.training import History, Trainer, TrainSettings, training_samples
from pipeline.detect.weights_file import load_any_detector, save_detector
from stages.extract.backbone.device import pick_device
from stages.extract.lift.choice import require_lift
from stages.extract.lift.module import LoadedLift, load_lift


def train_detect(
    images: Annotated[Path, typer.Option(help="Folder that the file names of the annotations are relative to.")],
    annotations: Annotated[Path, typer.Option(help="COCO JSON with boxes and masks.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    start: Annotated[
        Path | None,
        typer.Option(
            help="A detector to go on from, also Detectron2's; its architecture, backbone and LiFT hold."
        ),
    ] = None,
    backbone: Annotated[str, typer.Option(help="Backbone by name.")] = "dinov2_vits14",
    weights: Annotated[str | None, typer.Option(help="Its weights; bundled or timm's hub by default.")] = None,
    facet: Annotated[str, typer.Option(help="What the pyramid is built on.")] = "token@-1:norm",
    lift: Annotated[
        str, typer.Option(help="Between the backbone and the pyramid: none, auto (the bundled one) or a file.")
    ] = "none",
    size: Annotated[
        str, typer.Option(help="Input as HEIGHT,WIDTH in pixels; images are scaled to fit and padded.")
    ] = "308,560",
    levels: Annotated[
        str, typer.Option(help="Cells of the pyramid's levels in patches, each twice the one before.")
    ] = "0.5,1,2",
    anchor_cells: Annotated[float, typer.Option(help="Side of a level's square anchor in its cells.")] = 4.0,
    channels: Annotated[int, typer.Option(min=8, help="Channels of the pyramid; ViTDet has 256.")] = 128,
    rpn_convs: Annotated[int, typer.Option(min=1, help="Convolutions for proposals; ViTDet has 2.")] = 1,
    box_convs: Annotated[int, typer.Option(min=0, help="Convolutions of the box head; ViTDet has 4.")] = 1,
    box_hidden: Annotated[
        int, typer.Option(min=8, help="Hidden channels of the box head; ViTDet has 1024.")
    ] = 512,
    mask_convs: Annotated[int, typer.Option(min=1, help="Convolutions of the mask head; ViTDet has 4.")] = 2,
    unfreeze: Annotated[bool, typer.Option("--unfreeze", help="Train the backbone too; much slower.")] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images and their mirror images.")] = 12,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = 2,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Highest rate of AdamW.")] = 5e-4,
    weight_decay: Annotated[float, typer.Option(min=0.0, help="Of AdamW.")] = 0.05,
    box_samples: Annotated[
        int, typer.Option(min=8, help="Boxes per image that the heads are trained on; ViTDet has 512.")
    ] = 64,
    mirror: Annotated[bool, typer.Option(help="Also train on the mirror images.")] = True,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for the frozen backbone's maps; detect_cache beside OUTPUT.")
    ] = None,
    use_cache: Annotated[bool, typer.Option("--cached/--no-cache", help="Compute the maps once.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random choices.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    restart: Annotated[bool, typer.Option("--restart", help="Forget an earlier run's checkpoint.")] = False,
) -> None:
    """Train a ViTDet detector on a frozen ViT, with or without LiFT; continues a run that was killed."""
    if output.suffix != ".safetensors":
        raise ConfigError(f"--output {output}: must end in .safetensors")
    data = read_coco(annotations, images)
    if start is None:
        options = {
            "backbone": backbone, "facet": facet, "channels": channels,
            "canvas_hw": listed_numbers("--size", size, int),
            "anchor_cells": anchor_cells, "rpn_convs": rpn_convs, "box_convs": box_convs, "box_hidden": box_hidden,
            "mask_convs": mask_convs,
        }  # fmt: skip
        detector = new_detector(options, data, lift, weights, listed_numbers("--levels", levels, float), seed)
    else:
        detector = load_any_detector(start, backbone_weights=weights, device="cpu").detector
        _check_categories(detector.settings, data, start)
        for part in detector.trained_parts.values():
            part.requires_grad_(True)
    detector.to(pick_device(device))
    settings = TrainSettings(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        box_samples=box_samples,
        mirror=mirror,
        unfreeze=unfreeze,
        seed=seed,
    )
    samples = training_samples(data, mirror=mirror)
    folder = (cache or output.parent / "detect_cache") if use_cache and not unfreeze else None
    source = _source(folder, detector, data, samples, unfreeze=unfreeze)
    checkpoint = output.with_suffix(".checkpoint.pt")
    if restart:
        checkpoint.unlink(missing_ok=True)
    trainer = Trainer(settings, detector, data, samples, source, checkpoint)
    _train(trainer)
    _finish(trainer, output)


def new_detector(
    options: dict[str, object],
    data: CocoSet,
    lift: str,
    weights: str | None,
    levels: tuple[float, ...],
    seed: int,
) -> Detector:
    """A detector with random weights for the classes of a set.

    Args:
        options: Of :class:`DetectorSettings`, without categories and scales.
        data: The set.
        lift: ``none``, ``auto`` or a file.
        weights: Of the backbone.
        levels: Cells of the pyramid's levels in patches.
        seed: Of the weights.

    Raises:
        ConfigError: An option that does not fit.
        WeightsError: Weights or a LiFT that do not fit.
    """
    classes = {"categories": tuple(data.categories.values()), "category_ids": tuple(data.categories)}
    if min(levels) <= 0 or any(fine * 2 != coarse for fine, coarse in itertools.pairwise(levels)):
        raise ConfigError(f"--levels {','.join(f'{n:g}' for n in levels)}: each must be twice the one before")
    doubled = 1.0 if lift == "none" else 2.0
    scales = tuple(1 / (level * doubled) for level in levels)
    settings = load_config(DetectorSettings, {**options, **classes, "scales": scales}, origin="train-detect")
    if scales[0] > 4:
        raise ConfigError(
            f"--levels {levels[0]:g} needs {scales[0]:g} cells per cell of the map; at most 4 are made"
        )
    maps = build_maps(settings, weights=weights)
    chosen = _chosen_lift(lift, maps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Detector(settings, maps, chosen)


def _chosen_lift(lift: str, maps: FeatureMaps) -> LoadedLift | None:
    if lift == "none":
        return None
    if isinstance(maps, PlainMaps):
        return require_lift(lift, maps.backbone, maps.spec)
    return load_lift(Path(lift), patch_px=maps.patch_px)


def _check_categories(settings: DetectorSettings, data: CocoSet, start: Path) -> None:
    if settings.categories != tuple(data.categories.values()):
        raise ConfigError(
            f"{start}: has the classes {', '.join(settings.categories[:6])}..., {data.path} has "
            f"{', '.join(list(data.categories.values())[:6])}; --start needs the same classes in the same order"
        )


def _source(
    folder: Path | None, detector: Detector, data: CocoSet, samples: list[Sample], *, unfreeze: bool
) -> MapSource:
    """Where the maps come from, with a progress bar while they are computed."""
    detector.eval()
    if folder is None:
        return LiveMaps(detector, data, with_gradient=unfreeze)
    cached = CachedMaps(folder, detector, data, samples)
    missing = len(cached.missing)
    with tqdm(total=missing, desc="features", unit="view", disable=not missing) as bar:
        cached.fill(on_rows=bar.update)
    return cached


def _train(trainer: Trainer) -> None:
    with tqdm(total=trainer.total_steps, initial=trainer.step, desc="training", unit="step") as bar:

        def on_step(step: int, loss: float) -> None:
            bar.update(1)
            bar.set_postfix(loss=f"{loss:.3f}")

        trainer.run(on_step=on_step)


def _finish(trainer: Trainer, output: Path) -> None:
    """Write the file, its log and the curve, and show the last losses."""
    last = trainer.history.losses[-min(50, len(trainer.history.losses)) :]
    means = {name: round(sum(step[name] for step in last) / len(last), 4) for name in last[0]}
    facts = {
        "settings": asdict(trainer.settings),
        "images": len({sample.image for sample in trainer.samples}),
        "objects": sum(len(image.objects) for image in trainer.data.images),
        "steps": trainer.step,
        "last_losses": means,
    }
    save_detector(trainer.detector, output, training=facts, with_backbone=trainer.settings.unfreeze)
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    log = {
        **facts,
        "detector": pretty_settings(trainer.detector),
        "cpu_seconds_of_last_run": round(cpu.ru_utime + cpu.ru_stime, 1),
        "history": trainer.history.losses,
    }
    write_bytes_whole(output.with_suffix(".log.json"), json.dumps(log, indent=1).encode())
    write_bytes_whole(output.with_suffix(".curve.png"), plot_losses(trainer.history))
    console = Console(soft_wrap=True)
    table = Table(title=f"mean losses of the last {len(last)} steps", title_justify="left")
    for column in ("loss", "mean"):
        table.add_column(column, justify="left" if column == "loss" else "right")
    for name, value in {**means, "sum": sum(means.values())}.items():
        table.add_row(name.removeprefix("loss_"), f"{value:.4f}")
    console.print(table)
    console.print(f"wrote {output}")


def plot_losses(history: History) -> bytes:
    """Every loss over the steps, smoothed over 20, as PNG."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name in history.losses[0]:
        values = [step[name] for step in history.losses]
        smooth = [
            sum(values[max(0, n - 19) : n + 1]) / len(values[max(0, n - 19) : n + 1]) for n in range(len(values))
        ]
        axes.plot(range(1, len(values) + 1), smooth, label=name.removeprefix("loss_"), linewidth=1)
    axes.set(xlabel="step", ylabel="loss, mean of 20 steps", yscale="log", title="Training")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
