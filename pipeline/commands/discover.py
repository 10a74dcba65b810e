"""``discover``: the box of the main object of every image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import cv2
import torch
import typer
from rich.console import Console

from pipeline.core.config import load_config
from pipeline.core.files import write_json_whole
from pipeline.evaluation.localization import corloc, read_voc_boxes
from pipeline.images import image_sets
from pipeline.images.image_sets import DescribedImage
from pipeline.images.tokencut import normalized_cut
from stages.extract import ExtractConfig, Extractor


def discover(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for boxes.json and the pictures.")],
    threshold: Annotated[float, typer.Option(help="Cosine from which two cells are alike.")] = 0.2,
    annotations: Annotated[
        Path | None, typer.Option(help="Folder of Pascal VOC's .xml files, to score with CorLoc.")
    ] = None,
    short_side: Annotated[int, typer.Option(help="Short side of the images for the model, in pixels.")] = 448,
    backbone: Annotated[str, typer.Option(help="Name of the backbone.")] = "dinov2_vits14",
    weights: Annotated[str | None, typer.Option(help="Its weights; bundled or timm's hub by default.")] = None,
    facet: Annotated[str, typer.Option(help="Descriptors.")] = "key@11",
    lift: Annotated[str, typer.Option(help="none, auto or a LiFT file.")] = "none",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into an existing folder.")] = False,
) -> None:
    """Find one object in every image by a normalized cut (TokenCut): boxes as JSON, and pictures."""
    files = image_sets.find_images(images)
    truths = [read_voc_boxes(annotations / f"{file.stem}.xml") for file in files] if annotations else None
    options = {
        "backbone": backbone, "weights": weights, "facets": (facet,), "short_side": short_side, "lift": lift,
        "saliency": "none", "device": device,
    }  # fmt: skip
    extractor = Extractor(load_config(ExtractConfig, options, origin="discover"))
    image_sets.claim_folder(output, overwrite=overwrite)
    results: list[dict[str, Any]] = []
    for file, named in zip(files, image_sets.load_named(files), strict=True):
        (described,) = image_sets.describe([named], extractor)
        box = _box(described, threshold, output / f"{named[0]}.png")
        results.append({"image": str(file), "xyxy": [round(v, 2) for v in box]})
    content: dict[str, Any] = {"boxes": results}
    console = Console()
    if truths is not None:
        content["corloc"] = corloc([tuple(entry["xyxy"]) for entry in results], truths)
        console.print(f"CorLoc {content['corloc']:.4f} on {len(files)} images")
    write_json_whole(output / "boxes.json", content)
    console.print(f"{len(results)} boxes: {output / 'boxes.json'}")


def _box(described: DescribedImage, threshold: float, picture: Path) -> tuple[float, float, float, float]:
    """The object's box in pixels, drawn into a picture."""
    cut = normalized_cut(described.descriptors, threshold=threshold)
    corners = torch.tensor(cut.box_cells, dtype=torch.float32).reshape(2, 2)
    height, width = described.image.shape[:2]
    left, top, right, bottom = described.grid.cells_to_pixels(corners).flatten().tolist()
    box = (max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom))
    drawn = described.image.copy()
    thickness = max(2, min(height, width) // 160)
    first, second = (round(box[0]), round(box[1])), (round(box[2]), round(box[3]))
    cv2.rectangle(drawn, first, second, (255, 60, 60), thickness, cv2.LINE_AA)
    image_sets.write_picture(picture, drawn)
    return box
