"""``discover``: the box of the main object of every image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import typer
from rich.console import Console

from pipeline.core.files import write_json_whole
from pipeline.evaluation.localization import corloc, read_voc_boxes
from pipeline.images import image_sets
from pipeline.images.image_sets import image_extractor
from pipeline.images.main_object import Box, cells_box, choose_method, find_facets, object_cells


def discover(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for boxes.json and the pictures.")],
    method: Annotated[
        Literal["auto", "tokencut", "objectness", "discriminant"],
        typer.Option(help="auto: tokencut for DINO, objectness where it is bundled, else discriminant."),
    ] = "auto",
    threshold: Annotated[float, typer.Option(help="tokencut: cosine from which two cells are connected.")] = 0.2,
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
    """Find the main object of every image: boxes as JSON, and pictures."""
    files = image_sets.find_images(images)
    truths = [read_voc_boxes(annotations / f"{file.stem}.xml") for file in files] if annotations else None
    chosen = choose_method(backbone, facet) if method == "auto" else method
    facets = find_facets(chosen, facet)
    options = {
        "backbone": backbone, "weights": weights, "facets": facets, "short_side": short_side, "lift": lift,
        "saliency": "none", "device": device,
    }  # fmt: skip
    extractor = image_extractor(options, origin="discover")
    image_sets.claim_folder(output, overwrite=overwrite)
    results: list[dict[str, Any]] = []
    for file, named in zip(files, image_sets.load_named(files), strict=True):
        (described,) = image_sets.describe([named], extractor)
        mask = object_cells(described, chosen, facet=facet, threshold=threshold, backbone=backbone)
        box = cells_box(mask, described.grid)
        image_sets.write_picture(output / f"{named[0]}.png", _drawn(described.image, box))
        results.append({"image": str(file), "xyxy": [round(v, 2) for v in box]})
    content: dict[str, Any] = {"boxes": results}
    console = Console()
    if truths is not None:
        content["corloc"] = corloc([tuple(entry["xyxy"]) for entry in results], truths)
        console.print(f"CorLoc {content['corloc']:.4f} on {len(files)} images")
    write_json_whole(output / "boxes.json", content)
    console.print(f"{len(results)} boxes: {output / 'boxes.json'}")


def _drawn(image: image_sets.Image, box: Box) -> image_sets.Image:
    """A copy of the image with the box."""
    drawn = image.copy()
    thickness = max(2, min(image.shape[:2]) // 160)
    first, second = (round(box[0]), round(box[1])), (round(box[2]), round(box[3]))
    cv2.rectangle(drawn, first, second, (255, 60, 60), thickness, cv2.LINE_AA)
    return drawn
