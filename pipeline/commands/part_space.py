"""``part-space``: fit the directions that parts are clustered in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from tqdm import tqdm

from pipeline.core.config import load_config
from pipeline.images import image_sets
from pipeline.training.part_views import describe_views, view_pairs
from stages.cosegment.part_space import fit_part_space
from stages.extract import ExtractConfig, Extractor


def part_space(
    images: Annotated[list[Path], typer.Argument(help="Photographs, or folders of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file.")],
    axes: Annotated[int, typer.Option(min=1, help="Directions to keep.")] = 32,
    every: Annotated[int, typer.Option(min=1, help="Use every n-th photograph.")] = 8,
    short_side: Annotated[int, typer.Option(help="Short side for the model, in pixels.")] = 280,
    backbone: Annotated[str, typer.Option(help="Name of the backbone.")] = "dinov2_vits14",
    weights: Annotated[str | None, typer.Option(help="Its weights; bundled or timm's hub by default.")] = None,
    facet: Annotated[str, typer.Option(help="Descriptors.")] = "key@11",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Fit directions of the descriptors that agree between mirrored and enlarged views of photographs."""
    options = {
        "backbone": backbone, "weights": weights, "facets": (facet,), "short_side": short_side,
        "lift": "none", "saliency": "none", "cls": "none", "device": device,
    }  # fmt: skip
    files = image_sets.find_images(images)[::every]
    extractor = Extractor(load_config(ExtractConfig, options, origin="part-space"))
    pairs = []
    for file in tqdm(files, unit="image"):
        extractor.reset()
        pairs.extend(view_pairs(describe_views(file, extractor)))
    fit_part_space(pairs, axes).save(output)
    Console().print(f"{axes} directions from {len(files)} photographs: {output}")
