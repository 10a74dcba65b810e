"""``repair``: repair a backbone's singular defects on a folder of images, without labels."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from pipeline.core.errors import ConfigError, MediaError, OutputError
from pipeline.core.files import list_images
from pipeline.training.defect_survey import (
    CONTROL_FACTOR,
    MIN_NORM_RATIO,
    DefectSurvey,
    LayerSurvey,
    defective_layers,
)
from pipeline.training.repair import Repairer, RepairSettings, save_backbone
from pipeline.training.repair_data import load_square
from pipeline.training.singular_values import clamp_singular_values
from stages.extract.backbone.backbone import Backbone, load_backbone
from stages.extract.backbone.device import pick_device
from stages.extract.backbone.facets import parse_facet
from stages.extract.repair.sinder import DetectionRule, defect_loss
from stages.extract.repair.singular_directions import Fit, defect_directions

_SAVE_EVERY = 500


@dataclass(frozen=True, slots=True)
class _Job:
    """The command's options, apart from the training's settings."""

    images: list[Path]
    output: Path
    size: int
    rule: DetectionRule
    fit: Fit
    seed: int
    iterations: int

    @property
    def progress(self) -> Path:
        """The progress of an interrupted repair."""
        return self.output.with_name(self.output.name + ".unfinished")


def repair(
    images: Annotated[Path, typer.Option(help="Folder of images (sub-folders too); no labels are needed.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The repaired weights, a .safetensors file.")],
    backbone: Annotated[str, typer.Option(help="Name of the backbone.")] = "dinov2_vits14",
    weights: Annotated[Path | None, typer.Option(help="Its weights; bundled or timm's hub by default.")] = None,
    clamp: Annotated[
        float | None,
        typer.Option(help="No training: clamp all singular values to this (the paper tries 2.0, 1.5, 1.3)."),
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the center crop of every image in pixels.")] = 518,
    iterations: Annotated[
        int, typer.Option(help="Most images to train on; a smaller folder is used repeatedly.")
    ] = 30000,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of SGD.")] = 0.005,
    momentum: Annotated[float, typer.Option(help="Momentum of SGD.")] = 0.9,
    limit_layers: Annotated[int, typer.Option(help="Blocks up to the defective one that may move.")] = 10,
    window: Annotated[int, typer.Option(help="Images the stop rule is based on.")] = 1000,
    stop_share: Annotated[float, typer.Option(help="Stop when this share of them has no defects.")] = 0.75,
    mu: Annotated[float, typer.Option(help="Standard deviations that make an outlier.")] = 4.0,
    kernel: Annotated[int, typer.Option(help="Width of the neighborhood, 3 or 5.")] = 3,
    fit: Annotated[str, typer.Option(help="Linear fit of the MLPs: exact, or sampled as in the paper.")] = "exact",
    survey: Annotated[int, typer.Option(help="Images to survey for defects, before and after.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the order of images and of all sampling.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Train even where no real defects are found.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Do not continue an unfinished repair.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output file.")] = False,
) -> None:
    """Repair the defective tokens of a ViT (SINDER): moves its singular values, writes new weights."""
    _check(output, size=size, survey=survey, iterations=iterations, overwrite=overwrite)
    linear_fit, rule = _linear_fit(fit), DetectionRule(mu, kernel)
    settings = RepairSettings(learning_rate, momentum, limit_layers, window, stop_share)
    job = _Job(list_images(images, recursive=True), output, size, rule, linear_fit, seed, iterations)
    model = _load(backbone, weights, device, size)
    directions = defect_directions(model.vit.blocks, fit=linear_fit, seed=seed)
    sample = _order(len(job.images), seed, 0)[:survey]
    before = _survey(model, directions, job, sample, "survey before")
    _show("before", before, len(sample))
    if clamp is not None:
        _clamp(model, clamp)
    elif not force and not _has_defects(before):
        return
    elif not _train(model, directions, job, settings, restart=restart):
        return
    _show("after", _survey(model, directions, job, sample, "survey after"), len(sample))
    _save(model, job, clamp)


def _check(output: Path, *, size: int, survey: int, iterations: int, overwrite: bool) -> None:
    if output.suffix != ".safetensors":
        raise ConfigError(f"--output {output}: name a .safetensors file")
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists already; choose another --output or use --overwrite")
    for name, value in (("--survey", survey), ("--iterations", iterations), ("--size", size)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")


def _linear_fit(name: str) -> Fit:
    if name not in get_args(Fit):
        raise ConfigError(f"--fit {name}: valid are exact and sampled")
    return cast(Fit, name)


def _load(name: str, weights: Path | None, device: str, size: int) -> Backbone:
    model = load_backbone(name, weights=weights, device=pick_device(device))
    if size < 3 * model.patch_px:
        raise ConfigError(
            f"--size {size}: a neighborhood is 3 patches of {model.patch_px} px wide; give at least "
            f"{3 * model.patch_px}"
        )
    return model


def _survey(model: Backbone, directions: Tensor, job: _Job, sample: Sequence[int], what: str) -> list[LayerSurvey]:
    """Detections after every block over the sampled images; changes nothing."""
    counter = DefectSurvey(directions, num_prefix_tokens=model.num_prefix_tokens, rule=job.rule, seed=job.seed)
    model.token_hook = counter
    try:
        with torch.no_grad():
            for _, pixels in tqdm(_images(model, job, iter(sample)), total=len(sample), desc=what, unit="image"):
                model(pixels, [parse_facet("token@-1")])
    finally:
        model.token_hook = None
    return counter.result()


def _images(model: Backbone, job: _Job, order: Iterator[int]) -> Iterator[tuple[int, Tensor]]:
    """Normalized crops ``(1, 3, S, S)`` with their index; files that cannot be read are skipped with a warning."""
    size = job.size // model.patch_px * model.patch_px
    device = next(model.parameters()).device
    mean = torch.tensor(model.mean, device=device).view(1, 3, 1, 1)
    std = torch.tensor(model.std, device=device).view(1, 3, 1, 1)
    broken: set[int] = set()
    for index in order:
        try:
            pixels = torch.from_numpy(load_square(job.images[index], size)).to(device)
        except MediaError as error:
            if index not in broken:
                Console(stderr=True).print(f"warning: {error}", highlight=False, soft_wrap=True)
            broken.add(index)
            if len(broken) == len(job.images):
                raise MediaError(f"none of the {len(job.images)} images can be read; the last: {error}") from error
            continue
        yield index, (pixels.permute(2, 0, 1)[None].float() / 255 - mean) / std


def _order(count: int, seed: int, epoch: int) -> list[int]:
    order: list[int] = np.random.default_rng([seed, epoch]).permutation(count).tolist()
    return order


def _endless(count: int, seed: int, skip: int) -> Iterator[int]:
    """Image indices in a new order every pass, from position ``skip`` on, without end."""
    epoch, inside = divmod(skip, count)
    while True:
        yield from _order(count, seed, epoch)[inside:]
        epoch, inside = epoch + 1, 0


def _has_defects(survey: Sequence[LayerSurvey]) -> bool:
    if defective_layers(survey):
        return True
    detected = max(entry.images for entry in survey)
    reason = (
        "no block has an image with three outliers"
        if not detected
        else f"what was detected is not {CONTROL_FACTOR:g} times as frequent as along a random direction, or has "
        f"norms below {MIN_NORM_RATIO:g} times the median: outliers of the image, not singular defects"
    )
    Console().print(
        f"No singular defects found: {reason}. Nothing to repair, no file written (--force trains anyway).",
        highlight=False,
    )
    return False


def _show(when: str, survey: Sequence[LayerSurvey], images: int) -> None:
    table = Table(title=f"{when}: detections in {images} images")
    for name in ("block", "images", "random", "tokens", "norm", "largest", "defective"):
        table.add_column(name, justify="right")
    for entry in survey:
        table.add_row(
            str(entry.layer),
            str(entry.images),
            str(entry.control_images),
            str(entry.tokens),
            f"{entry.norm_ratio:.2f}" if entry.tokens else "-",
            f"{entry.largest_norm_ratio:.2f}",
            "yes" if entry.is_defective else "no",
        )
    console = Console()
    console.print(table)
    if when == "before":
        console.print(
            "images: with at least 3 detected tokens; random: the same along a random direction;\n"
            "norm: of the detected tokens over the image's median; largest: of any token, mean over images",
            highlight=False,
        )


def _clamp(model: Backbone, limit: float) -> None:
    cut = clamp_singular_values(model.vit.blocks, limit)
    Console().print(f"clamped {cut} singular values to {limit:g}", highlight=False)


def _train(model: Backbone, directions: Tensor, job: _Job, settings: RepairSettings, *, restart: bool) -> bool:
    """Train in place and fold; False where no image had defects, so that no weight changed."""

    def loss(layer: int, tokens: Tensor) -> Tensor | None:
        return defect_loss(tokens, directions[layer], job.rule)

    console = Console(stderr=True)
    repairer = Repairer(model, loss, settings)
    identity = _identity(model, job)
    if restart:
        job.progress.unlink(missing_ok=True)
    if job.progress.exists():
        repairer.load_progress(job.progress, identity)
        console.print(f"continuing {job.progress} after {repairer.iterations} images", highlight=False)
    try:
        _loop(repairer, model, job, identity)
    finally:
        # Also when interrupted: the same command continues from here.
        repairer.save_progress(job.progress, identity)
    why = "enough images have no defects" if repairer.finished else "--iterations is reached"
    console.print(f"stopped after {repairer.iterations} images: {why}", highlight=False)
    moved = repairer.shift_summary()
    for entry in moved:
        console.print(
            f"block {entry['block']}: singular values moved by {entry['mean']:+.4f} on average, "
            f"{entry['largest']:+.3f} at most",
            highlight=False,
        )
    repairer.fold()
    if not moved:
        job.progress.unlink(missing_ok=True)
        console.print("No image had defects: the weights did not change, no file written.", highlight=False)
    return bool(moved)


def _loop(repairer: Repairer, model: Backbone, job: _Job, identity: dict[str, Any]) -> None:
    not_finite = 0
    order = _endless(len(job.images), job.seed, repairer.iterations)
    bar = tqdm(total=job.iterations, initial=repairer.iterations, desc="repair", unit="image", file=sys.stderr)
    with bar:
        for _, pixels in _images(model, job, order):
            if repairer.iterations >= job.iterations or repairer.finished:
                break
            step = repairer.step(pixels)
            not_finite += step.outcome == "not_finite"
            bar.update()
            shown = {"without defects": f"{repairer.skipped_share:.0%}", "not finite": not_finite}
            if step.loss is not None:
                shown |= {"block": step.layer, "loss": f"{step.loss:.3f}"}
            bar.set_postfix(shown, refresh=False)
            if repairer.iterations % _SAVE_EVERY == 0:
                repairer.save_progress(job.progress, identity)


def _identity(model: Backbone, job: _Job) -> dict[str, Any]:
    """What an unfinished repair must share with this one to be continued."""
    names = "\n".join(str(path) for path in job.images)
    return {
        "backbone": model.name,
        "weights": model.weights_sha256,
        "images": hashlib.sha256(names.encode()).hexdigest(),
        "size": job.size,
        "mu": job.rule.mu,
        "kernel": job.rule.kernel,
        "fit": job.fit,
        "seed": job.seed,
    }


def _save(model: Backbone, job: _Job, clamp: float | None) -> None:
    made_by = "repair" if clamp is None else f"clamp {clamp:g}"
    save_backbone(model, job.output, {"made_by": made_by, "made_from_sha256": model.weights_sha256})
    job.progress.unlink(missing_ok=True)
    Console().print(
        f"wrote {job.output}: use it with --set extract.weights={job.output}", highlight=False, soft_wrap=True
    )
