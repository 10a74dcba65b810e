"""``train-lift``: train a LiFT for a frozen backbone on a folder of images."""

from __future__ import annotations

import io
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from tqdm import tqdm

from pipeline.core.errors import ConfigError
from pipeline.core.files import list_images, write_bytes_whole
from pipeline.training.lift_data import CacheKey, FeatureCache, hash_files
from pipeline.training.lift_training import History, Trainer, TrainSettings
from pipeline.training.lift_views import ViewSettings
from stages.extract.backbone.backbone import Backbone, load_backbone
from stages.extract.backbone.device import pick_device, pick_precision
from stages.extract.backbone.facets import FacetSpec
from stages.extract.lift.module import LiftMetadata, save_lift

Facet = Literal["query", "key", "value", "token"]


def train_lift(
    images: Annotated[Path, typer.Option(help="Folder of images, searched through; labels are not needed.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    backbone: Annotated[str, typer.Option(help="Backbone by name.")] = "dinov2_vits14",
    weights: Annotated[
        str | None, typer.Option(help="File of its weights; bundled or from timm's hub if not given.")
    ] = None,
    facet: Annotated[Facet, typer.Option(help="Facet to lift.")] = "key",
    layer: Annotated[int, typer.Option(help="Layer of the facet, 0-based; negative counts from the end.")] = -1,
    norm: Annotated[bool, typer.Option(help="With the model's final norm (tokens only).")] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for cached features; by default lift_cache beside OUTPUT.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the views.")] = 20,
    views: Annotated[int, typer.Option(min=1, help="Views of each image: the whole, then random crops.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Views per step.")] = 32,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Of Adam; the reference has 1e-3.")] = 3e-4,
    schedule: Annotated[Literal["cosine", "constant"], typer.Option(help="Of the learning rate.")] = "cosine",
    weight_decay: Annotated[float, typer.Option(min=0.0, help="Weight decay of AdamW; 0 is Adam.")] = 0.0,
    loss: Annotated[
        Literal["cosine", "l1", "l2"], typer.Option(help="Distance to the finer features.")
    ] = "cosine",
    subsampling: Annotated[
        Literal["antialiased", "strided"],
        typer.Option(help="How smaller scales are made; strided is the paper's code."),
    ] = "antialiased",
    size: Annotated[int, typer.Option(min=1, help="Largest scale in pixels; a multiple of 4 patches.")] = 448,
    jitter: Annotated[float, typer.Option(min=0.0, max=0.5, help="Strength of the color jitter.")] = 0.2,
    extra_blocks: Annotated[
        int, typer.Option(min=0, max=8, help="Further blocks on the doubled grid, for wide backbones.")
    ] = 0,
    start: Annotated[
        Literal["bilinear", "random"],
        typer.Option(help="Start as bilinear interpolation, or as the paper's code."),
    ] = "bilinear",
    mirror: Annotated[bool, typer.Option(help="Mirror cached views with their features.")] = False,
    held_out: Annotated[int, typer.Option(min=1, help="Images kept for validation.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random choices.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        typer.Option(help="Of the convolutions; auto is bf16 on CUDA, else fp32."),
    ] = "auto",
    restart: Annotated[bool, typer.Option("--restart", help="Forget an earlier run's checkpoint.")] = False,
) -> None:
    """Train LiFT on features of the frozen backbone at three scales; continues a run that was killed."""
    target = pick_device(device)
    model = load_backbone(backbone, weights=weights, device=target)
    spec = FacetSpec(facet, layer, norm).resolved(model.num_layers)
    _check_options(output, size, model.patch_px)
    view_settings = ViewSettings(size_px=size, subsampling=subsampling, jitter=jitter, seed=seed)
    features = _cached_features(
        images, cache or output.parent / "lift_cache", model, spec, view_settings, held_out, views, target
    )
    settings = TrainSettings(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule=schedule,
        weight_decay=weight_decay,
        loss=loss,
        views=views,
        mirror=mirror,
        extra_blocks=extra_blocks,
        start=start,
        bf16=str(pick_precision(precision, target)) == "torch.bfloat16",
        seed=seed,
    )
    checkpoint = output.with_suffix(".checkpoint.pt")
    if restart:
        checkpoint.unlink(missing_ok=True)
    trainer = Trainer(settings, features, patch_px=model.patch_px, checkpoint=checkpoint, device=target)
    seconds = _train(trainer, target)
    _finish(trainer, output, model, spec, features, seconds)


def _check_options(output: Path, size: int, patch_px: int) -> None:
    if output.suffix != ".safetensors":
        raise ConfigError(f"--output {output}: must end in .safetensors")
    if size < 8 * patch_px:
        raise ConfigError(f"--size {size} leaves one patch at a quarter of it; give at least {8 * patch_px}")
    if size % (4 * patch_px):
        nearest = max(1, round(size / (4 * patch_px))) * 4 * patch_px
        raise ConfigError(f"--size {size} is not a multiple of 4 patches of {patch_px} px; nearest: {nearest}")


def _cached_features(
    images: Path,
    root: Path,
    model: Backbone,
    spec: FacetSpec,
    view_settings: ViewSettings,
    held_out: int,
    views: int,
    device: torch.device,
) -> FeatureCache:
    """The cache with all views computed."""
    files = list_images(images, recursive=True)
    key = CacheKey(model.name, str(spec), model.weights_sha256, hash_files(files), held_out, view_settings)
    features = FeatureCache.open(root, key, files)
    missing = sum(len(features.missing(view)) for view in range(views))
    with tqdm(total=missing, desc="features", unit="view", disable=not missing) as bar:
        for view in range(views):
            features.fill(
                view,
                lambda scale: model(scale, [spec]).maps[str(spec)],
                model.mean,
                model.std,
                batch_size=16 if device.type == "cuda" else 4,
                device=device,
                on_rows=bar.update,
            )
    return features


def _train(trainer: Trainer, device: torch.device) -> float:
    """Run the training with a progress bar; returns its seconds."""
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    started = time.perf_counter()
    with tqdm(total=trainer.total_steps, initial=trainer.step, desc="training", unit="step") as bar:

        def on_step(step: int, loss: float) -> None:
            bar.update(1)
            bar.set_postfix(loss=f"{loss:.4f}")

        def on_epoch(scores: dict[str, float]) -> None:
            epoch = len(trainer.history.epochs)
            bar.write(
                f"epoch {epoch}: held-out cosine {scores['lift_1']:.4f} (bilinear {scores['bilinear_1']:.4f}) "
                f"at full, {scores['lift_2']:.4f} (bilinear {scores['bilinear_2']:.4f}) at half size"
            )

        trainer.run(on_step=on_step, on_epoch=on_epoch)
    return time.perf_counter() - started


def _finish(
    trainer: Trainer, output: Path, model: Backbone, spec: FacetSpec, features: FeatureCache, seconds: float
) -> None:
    """Write the file, its log and the curve, and print the held-out scores."""
    scores = trainer.history.epochs[-1]
    facts = {
        "settings": asdict(trainer.settings),
        "views": asdict(features.key.settings),
        "train_images": len(features.train),
        "held_out_images": len(features.held_out),
        "steps": trainer.step,
        "held_out_cosine": {name: round(value, 5) for name, value in scores.items()},
    }
    save_lift(
        trainer.model, LiftMetadata(model.name, str(spec), model.patch_px, model.weights_sha256, facts), output
    )
    log = {**facts, "seconds_of_last_run": round(seconds, 1), "history": asdict(trainer.history)}
    write_bytes_whole(output.with_suffix(".log.json"), json.dumps(log, indent=1).encode())
    write_bytes_whole(output.with_suffix(".curve.png"), plot_curve(trainer.history, trainer.settings))
    console = Console(soft_wrap=True)
    for level, what in (
        ("1", "half to full size"),
        ("2", "quarter to half size"),
        ("twice", "quarter to full size"),
    ):
        before, after = scores[f"bilinear_{level}"], scores[f"lift_{level}"]
        console.print(f"held-out cosine, {what}: bilinear {before:.4f}, LiFT {after:.4f} ({after - before:+.4f})")
    console.print(f"wrote {output}")


def plot_curve(history: History, settings: TrainSettings) -> bytes:
    """The loss of every step and the held-out cosines of every epoch, as PNG."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot(history.losses, linewidth=0.6)
    left.set(xlabel="step", ylabel=f"{settings.loss} loss, both scales", yscale="log", title="Training")
    for level, color, what in ((1, "tab:blue", "full size"), (2, "tab:orange", "half size")):
        epochs = range(1, len(history.epochs) + 1)
        right.plot(epochs, [e[f"lift_{level}"] for e in history.epochs], color=color, label=f"LiFT, {what}")
        right.plot(
            epochs, [e[f"bilinear_{level}"] for e in history.epochs], "--", color=color, label=f"bilinear, {what}"
        )
    right.set(xlabel="epoch", ylabel="held-out cosine", title="Held-out images")
    right.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
