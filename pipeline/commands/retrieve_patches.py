"""``retrieve-patches``: how well the patches of changed images are found again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from tqdm import tqdm

from pipeline.core.errors import ConfigError
from pipeline.core.files import write_json_whole
from pipeline.core.options import names_in
from pipeline.images.image_sets import claim_folder
from pipeline.local.heads import Metric
from pipeline.local.open_set import Layout, open_labeled_set
from pipeline.local.patch_features import Describer, parse_backbone, parse_feature, parse_tilings
from pipeline.local.patch_retrieval import Change, PatchRetrieval
from pipeline.local.perturbations import geometric_changes, photometric_changes
from pipeline.local.retrieval_report import draw_retrieval, retrieval_table, to_json


def retrieve_patches(
    data: Annotated[Path, typer.Argument(help="Root of the data; for COCO perhaps its JSON file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for retrieval.json and the plots.")],
    layout: Annotated[Layout, typer.Option("--format", help="Layout of the data.")] = "coco",
    images: Annotated[Path | None, typer.Option(help="COCO: folder of the images.")] = None,
    davis_list: Annotated[str, typer.Option(help="DAVIS: list of sequences under ImageSets/2016.")] = "val",
    davis_classes: Annotated[
        Literal["object", "sequence"], typer.Option(help="DAVIS: one class for all objects, or one a sequence.")
    ] = "sequence",
    split: Annotated[str | None, typer.Option(help="Only this split.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Most images, spread over all.")] = None,
    per_group: Annotated[int | None, typer.Option(min=1, help="Most images of a group.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Only every n-th image of a group.")] = 1,
    backbone: Annotated[list[str] | None, typer.Option(help="NAME or NAME=WEIGHTS; may be repeated.")] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option(help="facet@layer[:norm][+lift[=FILE]|+bilinear], token@-1:norm by default; repeatable."),
    ] = None,
    tiles: Annotated[str, typer.Option(help="whole, or ROWSxCOLUMNS of tiles.")] = "whole",
    short_side: Annotated[int, typer.Option(min=1, help="Short side of whole images at the model, pixels.")] = 448,
    tile_side: Annotated[int, typer.Option(min=1, help="Side of tiles at the model, pixels.")] = 224,
    shift: Annotated[str, typer.Option(help="Shifts right and down, pixels at the model.")] = "1,2,4,7,10,14",
    rotate: Annotated[str, typer.Option(help="Rotations, degrees.")] = "2,5,10,20,45,90,180",
    scale: Annotated[str, typer.Option(help="Scales.")] = "0.5,0.7,0.85,1.2,1.5,2",
    blur: Annotated[str, typer.Option(help="Blurs, standard deviations in pixels.")] = "1,2,4,8",
    noise: Annotated[
        str, typer.Option(help="Noises, standard deviations for pixels from 0 to 1.")
    ] = "0.05,0.1,0.2,0.4",
    remove: Annotated[int, typer.Option(min=0, help="High-variance channels to remove.")] = 0,
    metric: Annotated[Metric, typer.Option(help="Distance of descriptors.")] = "euclidean",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into an existing folder.")] = False,
) -> None:
    """Find patches of shifted, rotated, scaled, blurred and noisy images again: table, JSON, plots."""
    changes: list[Change] = [
        *geometric_changes("shift", "--shift", shift),
        *geometric_changes("rotate", "--rotate", rotate),
        *geometric_changes("scale", "--scale", scale),
        *photometric_changes("blur", "--blur", blur),
        *photometric_changes("noise", "--noise", noise),
    ]
    if not changes:
        raise ConfigError("nothing to do: give at least one of --shift, --rotate, --scale, --blur, --noise")
    names = [parse_backbone(text) for text in backbone or ["dinov2_vits14"]]
    features = list(dict.fromkeys(parse_feature(text) for text in feature or ["token@-1:norm"]))
    tilings = parse_tilings(tiles, short_side=short_side, tile_side=tile_side)
    if len(names_in(tiles)) > 1:
        raise ConfigError(f"--tiles {tiles}: retrieval takes one; run it again for another")
    chosen = open_labeled_set(layout, data, images=images, davis_list=davis_list, davis_classes=davis_classes)
    chosen = (chosen.of_split(split) if split is not None else chosen).spread(per_group, every, limit)
    if len(chosen.images) < 2:
        raise ConfigError("retrieval needs at least two images, because the query's own is left out")
    describers = [Describer(name, features, tilings[0], device) for name in names]
    for one in describers:
        if remove >= one.channels:
            raise ConfigError(f"--remove {remove}: {one.backbone.name} has features of {one.channels} channels")
    claim_folder(output, overwrite=overwrite)
    console, runs = Console(), []
    total = len(chosen.images) * (1 + len(changes)) * len(names)
    with tqdm(total=total, desc="retrieval", unit="image", file=sys.stderr, mininterval=0.5) as progress:
        for describer in describers:
            progress.set_postfix_str(describer.backbone.name)
            runs.append(PatchRetrieval(describer, chosen, changes, (remove,), metric, progress.update).run())
    content: dict[str, Any] = {
        "images": len(chosen.images), "classes": [c.name for c in chosen.classes], "tiling": str(tilings[0]),
        "metric": metric,
        "runs": [{"backbone": n.name, "scores": to_json(r)} for n, r in zip(names, runs, strict=True)],
    }  # fmt: skip
    write_json_whole(output / "retrieval.json", content)
    for number, (name, counts) in enumerate(zip(names, runs, strict=True), start=1):
        for wanted in features:
            console.print(retrieval_table(name.name, counts, str(wanted), remove))
        picture = output / f"retrieval_{number}_{name.name}.png"
        draw_retrieval(picture, f"{name.name}, patches found again", counts, [str(f) for f in features], remove)
    console.print("in parentheses: upper bounds below 1; others: the query's own image left out", style="dim")
    console.print(f"{output}: retrieval.json, retrieval_*.png", markup=False, highlight=False)
