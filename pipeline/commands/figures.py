"""``figures``: the papers' qualitative figures from a folder of images, on one page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pipeline.core.files import write_json_whole
from pipeline.images.image_sets import claim_folder
from pipeline.local.figure_material import FigureSettings, Material, parse_layers
from pipeline.local.figures import (
    FIGURES,
    PageFigure,
    choose_figures,
    draw_figure,
    require_possible,
    write_figures_page,
)
from pipeline.local.image_source import load_images
from pipeline.local.patch_features import parse_backbone


def figures(
    source: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="Images, folders of images, videos.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the page, pictures and numbers.")],
    only: Annotated[str, typer.Option(help=f"Only these of {', '.join(FIGURES)}; comma separated.")] = "",
    max_images: Annotated[int, typer.Option(min=1, help="Most images, spread over all.")] = 8,
    every: Annotated[int, typer.Option(min=1, help="Every n-th image of a folder, frame of a video.")] = 1,
    short_side: Annotated[int, typer.Option(min=1, help="Short side of the images for the model, pixels.")] = 224,
    layers: Annotated[str, typer.Option(help="Layers side by side, such as 2,5,8,11; four by default.")] = "",
    parts: Annotated[int, typer.Option(min=1, max=64, help="Number of parts.")] = 4,
    clusters: Annotated[int, typer.Option(min=2, max=64, help="Number of clusters of k-means.")] = 6,
    lift: Annotated[str, typer.Option(help="auto (bundled, if there is one), none or a LiFT file.")] = "auto",
    lift_facet: Annotated[str, typer.Option(help="The facet the LiFT was trained for.")] = "key@-1",
    backbone: Annotated[list[str] | None, typer.Option(help="NAME or NAME=WEIGHTS; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into an existing folder.")] = False,
) -> None:
    """Draw the papers' figures of features, parts, matches, LiFT and norms: one page, PNG, JSON."""
    names = choose_figures(only)
    settings = FigureSettings(parse_layers(layers), short_side, parts, clusters, lift, lift_facet, device)
    backbones = [parse_backbone(one) for one in backbone or ["dinov2_vits14"]]
    named = load_images(source, every=every, limit=max_images)
    drawn: list[PageFigure] = []
    with tqdm(total=len(names) * len(backbones), desc="figures", unit="figure", file=sys.stderr) as progress:
        materials = [Material(named, one, settings) for one in backbones]
        if only:
            for material in materials:
                require_possible(names, material)
        claim_folder(output, overwrite=overwrite)
        for material in materials:
            for name in names:
                progress.set_postfix_str(f"{name}, {material.backbone.name}")
                drawn.append(draw_figure(name, material, output))
                progress.update()
    note = f"{len(named)} images, short side {short_side} px: {', '.join(name for name, _ in named)}."
    write_figures_page(output / "figures.html", drawn, note)
    content = {
        "images": [name for name, _ in named],
        "settings": {name: getattr(settings, name) for name in settings.__slots__},
        "figures": [
            {
                "backbone": figure.backbone,
                "figure": figure.name,
                "files": [file.name for file in figure.files],
                "not_drawn": figure.reason or None,
                "numbers": figure.numbers,
            }
            for figure in drawn
        ],
    }
    write_json_whole(output / "figures.json", content)
    _print(drawn, output)


def _print(drawn: list[PageFigure], output: Path) -> None:
    table = Table(box=SIMPLE_HEAD)
    for heading in ("figure", "backbone", "pictures"):
        table.add_column(heading)
    for figure in drawn:
        table.add_row(figure.name, figure.backbone, figure.reason or ", ".join(file.name for file in figure.files))
    console = Console()
    console.print(table)
    console.print(f"{output}: figures.html, figures.json", markup=False, highlight=False)
