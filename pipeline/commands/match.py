"""``match``: point correspondences between two images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from tqdm import tqdm

from pipeline.core.errors import ConfigError
from pipeline.core.files import write_json_whole
from pipeline.images import image_sets
from pipeline.images.image_sets import image_extractor
from pipeline.images.match_images import Matcher, default_facet, draw_matches


def match(
    a: Annotated[Path, typer.Argument(help="First image.")],
    b: Annotated[Path, typer.Argument(help="Second image.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for matches.json and matches.png.")],
    pairs: Annotated[int, typer.Option(min=1, help="Most pairs of points.")] = 10,
    threshold: Annotated[
        float | None,
        typer.Option(help="Foreground is more salient than this; 0.05 for CLS attention (the paper), else 0.2."),
    ] = None,
    short_side: Annotated[int, typer.Option(help="Short side of the images for the model, in pixels.")] = 448,
    backbone: Annotated[str, typer.Option(help="Name of the backbone.")] = "dinov2_vits14",
    weights: Annotated[str | None, typer.Option(help="Its weights; bundled or timm's hub by default.")] = None,
    facet: Annotated[
        str | None,
        typer.Option(help="The descriptors; key@9 as in the paper, token@-3 (with --lift key@-1) for DINOv2."),
    ] = None,
    point: Annotated[
        list[str] | None, typer.Option(metavar="X,Y", help="Find the partner of this point of A (pixels) instead.")
    ] = None,
    zoom: Annotated[
        bool | None,
        typer.Option("--zoom/--no-zoom", help="Refine in windows around the first pairs; the default for DINOv2."),
    ] = None,
    stride: Annotated[int | None, typer.Option(help="Stride of the patches in pixels; divides the patch.")] = 7,
    log_bins: Annotated[int, typer.Option(help="Levels of log binning; 0 is off.")] = 2,
    saliency: Annotated[str, typer.Option(help="auto, cls_attention, first_pc, ncut or none.")] = "auto",
    lift: Annotated[str, typer.Option(help="none, auto or a LiFT file.")] = "none",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into an existing folder.")] = False,
) -> None:
    """Find points of A and B that correspond (best buddies, or given points' partners): JSON, picture."""
    files = image_sets.find_images([a, b])
    options = {
        "backbone": backbone, "weights": weights, "facets": (facet or default_facet(backbone, lift),),
        "short_side": short_side, "stride_px": stride, "log_bins": log_bins, "saliency": saliency, "cls": "final",
        "lift": lift, "device": device,
    }  # fmt: skip
    extractor = image_extractor(options, origin="match")
    images = image_sets.load_named(files)
    wanted = [parse_point(text, images[0][1].shape[:2]) for text in point or []]
    image_sets.claim_folder(output, overwrite=overwrite)
    if threshold is None:
        threshold = 0.05 if extractor.cue == "cls_attention" else 0.2
    with tqdm(unit="view", desc="match") as progress:
        matcher = Matcher(extractor, images, threshold=threshold, on_view=progress.update)
        if zoom is None:
            zoom = backbone.startswith("dinov2")
        if wanted:
            found = matcher.partners(np.array(wanted, np.float32), zoom=zoom)
        else:
            found = matcher.best_pairs(pairs, zoom=zoom)
    score = matcher.saliency_of(found)
    write_json_whole(
        output / "matches.json",
        {
            "images": [str(file) for file in files],
            "matches": [
                {
                    "a_xy": [round(float(v), 2) for v in p],
                    "b_xy": [round(float(v), 2) for v in q],
                    "score": float(s),
                }
                for p, q, s in zip(found.first_xy, found.second_xy, score, strict=True)
            ],
        },
    )
    picture = draw_matches(images[0][1], images[1][1], found.first_xy, found.second_xy)
    image_sets.write_picture(output / "matches.png", picture)
    console = Console()
    if not len(found):
        console.print("no salient pair of best buddies was found; try a lower --threshold")
    console.print(f"{len(found)} matches: {output / 'matches.json'}, {output / 'matches.png'}")


def parse_point(text: str, image_hw: tuple[int, ...]) -> tuple[float, float]:
    """``X,Y`` in pixels, inside an image of this height and width.

    >>> parse_point("12,3.5", (10, 20))
    (12.0, 3.5)
    """
    try:
        x, y = (float(value) for value in text.split(","))
    except ValueError:
        raise ConfigError(f"--point {text}: write X,Y in pixels, such as --point 120,80") from None
    if not (0 <= x < image_hw[1] and 0 <= y < image_hw[0]):
        raise ConfigError(f"--point {text}: outside A; x from 0 to {image_hw[1] - 1}, y to {image_hw[0] - 1}")
    return x, y
