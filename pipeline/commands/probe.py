"""``probe``: few-shot patch classification on frozen features, by nearest neighbors and linear layers."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from tqdm import tqdm

from pipeline.core.errors import ConfigError
from pipeline.core.files import write_json_whole
from pipeline.core.options import names_in
from pipeline.images.image_sets import claim_folder
from pipeline.local.heads import HEAD_KINDS, HeadKind, Metric
from pipeline.local.labeled_set import LabeledSet
from pipeline.local.open_set import Layout, open_labeled_set
from pipeline.local.patch_features import Describer, Tiling, parse_backbone, parse_feature, parse_tilings
from pipeline.local.perturbations import photometric_changes
from pipeline.local.probe_report import (
    ProbeRun,
    class_table,
    draw_robustness,
    draw_scores,
    draw_variance,
    robustness_table,
    score_table,
    to_json,
)
from pipeline.local.probing import Probe, ProbeSettings, Trial, make_trials

_MAX_TABLE_CLASSES = 40


def probe(
    data: Annotated[Path, typer.Argument(help="Root of the data; for COCO perhaps its JSON file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for probe.json and the plots.")],
    layout: Annotated[Layout, typer.Option("--format", help="Layout of the data.")] = "folder",
    images: Annotated[Path | None, typer.Option(help="COCO: folder of the images.")] = None,
    davis_list: Annotated[str, typer.Option(help="DAVIS: list of sequences under ImageSets/2016.")] = "val",
    train_split: Annotated[str, typer.Option(help="Split to train on, where the data has splits.")] = "train",
    test_split: Annotated[str, typer.Option(help="Split to test on, where the data has splits.")] = "val",
    train_groups: Annotated[
        int | None,
        typer.Option(
            min=1, help="Train on so many groups (cities, sequences, folders); without splits the others test."
        ),
    ] = None,
    per_group: Annotated[int | None, typer.Option(min=1, help="Training images of a group (paper: 4).")] = None,
    train_images: Annotated[int | None, typer.Option(min=1, help="Most training images, spread over all.")] = None,
    test_images: Annotated[int | None, typer.Option(min=1, help="Most test images, spread over all.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Only every n-th image of a group.")] = 1,
    trials: Annotated[int, typer.Option(min=1, help="Draws of training groups; the scores are their mean.")] = 1,
    backbone: Annotated[list[str] | None, typer.Option(help="NAME or NAME=WEIGHTS; may be repeated.")] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option(help="facet@layer[:norm][+lift[=FILE]|+bilinear], token@-1:norm by default; repeatable."),
    ] = None,
    tiles: Annotated[
        str, typer.Option(help="whole or ROWSxCOLUMNS (paper: 2x4); several are compared.")
    ] = "whole",
    short_side: Annotated[int, typer.Option(min=1, help="Short side of whole images at the model, pixels.")] = 448,
    tile_side: Annotated[int, typer.Option(min=1, help="Side of tiles at the model, pixels.")] = 224,
    heads: Annotated[str, typer.Option(help="knn, linear, linear_bn; comma separated.")] = "knn,linear,linear_bn",
    k: Annotated[int, typer.Option(min=1, help="Neighbors.")] = 1,
    metric: Annotated[Metric, typer.Option(help="Distance of k-NN.")] = "euclidean",
    remove: Annotated[str, typer.Option(help="How many high-variance channels to remove (MAE-200: 200).")] = "0",
    blur: Annotated[str, typer.Option(help="Blur test images: standard deviations in pixels.")] = "",
    noise: Annotated[str, typer.Option(help="Noise on test images: standard deviations of 1.")] = "",
    bands: Annotated[str, typer.Option(help="Noise of frequency bands: their middles, Nyquist is 1.")] = "",
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into an existing folder.")] = False,
) -> None:
    """Classify patches from a few labeled images: pixel accuracy and mIoU, tables, JSON and plots."""
    changes = (
        *photometric_changes("blur", "--blur", blur),
        *photometric_changes("noise", "--noise", noise),
        *photometric_changes("band", "--bands", bands),
    )
    settings = ProbeSettings(_heads(heads), k, metric, _removed(remove), changes)
    names = [parse_backbone(text) for text in backbone or ["dinov2_vits14"]]
    features = list(dict.fromkeys(parse_feature(text) for text in feature or ["token@-1:norm"]))
    tilings = parse_tilings(tiles, short_side=short_side, tile_side=tile_side)
    whole = open_labeled_set(layout, data, images=images, davis_list=davis_list)
    pools = _pools(whole, train_split, test_split)
    pools = (
        pools[0].spread(per_group, every, train_images),
        pools[1].spread(None, every, test_images),
    )
    drawn = make_trials(*pools, train_groups, trials, seed)
    describers = [Describer(name, features, tilings[0], device) for name in names]
    probes = [Probe(one.tiled(tiling), drawn, settings) for one in describers for tiling in tilings]
    claim_folder(output, overwrite=overwrite)
    runs = []
    total = Probe.count_images(drawn, settings) * len(probes)
    with tqdm(total=total, desc="probe", unit="image", file=sys.stderr, mininterval=0.5) as progress:
        for (name, tiling), one in zip(product(names, tilings), probes, strict=True):
            progress.set_postfix_str(f"{name.name}, {tiling}")
            runs.append(ProbeRun(name.name, str(tiling), one.run(progress.update)))
    _report(output, runs, whole, drawn, settings, tilings)


def _heads(text: str) -> tuple[HeadKind, ...]:
    chosen = tuple(kind for kind in HEAD_KINDS if kind in names_in(text))
    wrong = [name for name in names_in(text) if name not in HEAD_KINDS]
    if wrong or not chosen:
        raise ConfigError(f"--heads {text}: choose from {', '.join(HEAD_KINDS)}")
    return chosen


def _removed(text: str) -> tuple[int, ...]:
    try:
        counts = sorted({int(name) for name in names_in(text)})
    except ValueError:
        counts = []
    if not counts or counts[0] < 0:
        raise ConfigError(f"--remove {text}: give whole numbers from 0 on, for example 0,50,100,200")
    return tuple(counts)


def _pools(data: LabeledSet, train_split: str, test_split: str) -> tuple[LabeledSet, LabeledSet]:
    """What may train and what may test; all images for both where the data has no splits."""
    if data.splits == ("",):
        return data, data
    return data.of_split(train_split), data.of_split(test_split)


def _report(
    output: Path,
    runs: list[ProbeRun],
    data: LabeledSet,
    trials: list[Trial],
    settings: ProbeSettings,
    tilings: list[Tiling],
) -> None:
    content: dict[str, Any] = {
        "classes": [one.name for one in data.classes],
        "trials": [
            {
                "train_groups": trial.train.groups,
                "train_images": len(trial.train.images),
                "test_images": len(trial.test.images),
            }
            for trial in trials
        ],
        "settings": {
            "k": settings.k,
            "metric": settings.metric,
            "removed": settings.removed,
            "changes": [str(change) for change in settings.changes],
            "tilings": [str(tiling) for tiling in tilings],
        },
        "runs": to_json(runs, data.classes),
    }
    write_json_whole(output / "probe.json", content)
    draw_scores(output / "scores.png", runs)
    draw_variance(output / "variance.png", runs)
    written = ["probe.json", "scores.png", "variance.png"]
    console = Console()
    for run in runs:
        console.print(score_table(run))
        if len(data.classes) <= _MAX_TABLE_CLASSES:
            console.print(class_table(run, data.classes))
        table = robustness_table(run)
        if table is not None:
            console.print(table)
    if settings.changes:
        draw_robustness(output / "robustness.png", runs)
        written.append("robustness.png")
    console.print(f"{output}: {', '.join(written)}", markup=False, highlight=False)
