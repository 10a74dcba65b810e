"""``bench composites``: a small labeled data set for trying detectors, made from DAVIS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from tqdm import tqdm

from pipeline.core.errors import OutputError
from pipeline.detect.composites import make_composites


def bench_composites(
    root: Annotated[Path, typer.Option(help="DAVIS folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the images and the COCO files.")],
    train: Annotated[int, typer.Option(min=1, help="Images to train on.")] = 200,
    held_out: Annotated[int, typer.Option(min=1, help="Images of each of the two held-out sets.")] = 40,
    split: Annotated[str, typer.Option(help="List of sequences, under ImageSets/2016.")] = "dev",
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random choices.")] = 0,
) -> None:
    """Paste DAVIS objects on DAVIS backgrounds: images, exact boxes and masks in COCO's layout."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"{output}: exists already; name a new folder")
    counts = {"train": train, "frames": held_out, "objects": held_out}
    with tqdm(total=sum(counts.values()), desc="composites", unit="image") as bar:
        make_composites(root, output, counts, split=split, seed=seed, on_image=bar.update)
    Console(soft_wrap=True).print(f"wrote {', '.join(str(output / f'{name}.json') for name in counts)}")
