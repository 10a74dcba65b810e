"""``objectness``: learn from photographs which descriptors belong to objects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from tqdm import tqdm

from pipeline.core.config import load_config
from pipeline.core.errors import ConfigError, MediaError
from pipeline.images import image_sets
from pipeline.training.objectness_data import describe_photographs
from stages.cosegment.objectness import fit_objectness
from stages.extract import ExtractConfig, Extractor

_TOKENS = "token@-1"


def objectness(
    images: Annotated[list[Path], typer.Argument(help="Photographs, or folders of them; labels are not needed.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file.")],
    every: Annotated[int, typer.Option(min=1, help="Use every n-th photograph.")] = 2,
    short_side: Annotated[int, typer.Option(help="Short side for the model, in pixels.")] = 280,
    backbone: Annotated[str, typer.Option(help="Name of the backbone.")] = "dinov2_vits14",
    weights: Annotated[str | None, typer.Option(help="Its weights; bundled or timm's hub by default.")] = None,
    facet: Annotated[str, typer.Option(help="Descriptors.")] = "key@11",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Learn a linear function of descriptors that says how much a cell looks like an object."""
    if output.suffix != ".safetensors":
        raise ConfigError(f"--output {output}: must end in .safetensors")
    options = {
        "backbone": backbone, "weights": weights, "facets": tuple(dict.fromkeys((facet, _TOKENS))),
        "short_side": short_side, "lift": "none", "saliency": "none", "cls": "none", "device": device,
        "batch_size": 1,
    }  # fmt: skip
    files = image_sets.find_images(images)[::every]
    extractor = Extractor(load_config(ExtractConfig, options, origin="objectness"))
    with tqdm(total=len(files), desc="objectness", unit="image") as bar:
        rows, evidence = describe_photographs(files, extractor, tokens=_TOKENS, on_photograph=bar.update)
    try:
        fit_objectness(rows, evidence).save(output)
    except ValueError as error:
        raise MediaError(f"{images[0]}: {error}") from error
    Console(soft_wrap=True).print(f"objectness of {facet} from {len(rows)} photographs: {output}")
