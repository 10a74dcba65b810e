"""``discover``: the box of the main object of every image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.console import Console

from pipeline.core.files import write_json_whole
from pipeline.core.grid import PatchGrid
from pipeline.evaluation.localization import corloc, read_voc_boxes
from pipeline.images import image_sets
from pipeline.images.image_sets import image_extractor
from pipeline.images.object_discovery import find_object
from pipeline.images.tokencut import normalized_cut

Box = tuple[float, float, float, float]

_BORDER_FACET = "token@-1"


def discover(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for boxes.json and the pictures.")],
    method: Annotated[
        Literal["auto", "tokencut", "discriminant"],
        typer.Option(help="auto is tokencut for DINO and discriminant for other backbones."),
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
    if method == "auto":
        method = "tokencut" if backbone.startswith("dino_") else "discriminant"
    facets = (facet,) if method == "tokencut" else (facet, _BORDER_FACET)
    options = {
        "backbone": backbone, "weights": weights, "facets": facets, "short_side": short_side, "lift": lift,
        "saliency": "none", "device": device,
    }  # fmt: skip
    extractor = image_extractor(options, origin="discover")
    image_sets.claim_folder(output, overwrite=overwrite)
    results: list[dict[str, Any]] = []
    for file, named in zip(files, image_sets.load_named(files), strict=True):
        (described,) = image_sets.describe([named], extractor)
        if method == "tokencut":
            mask = normalized_cut(described.descriptors, threshold=threshold).object_mask
        else:
            tokens = described.descriptors if facet == _BORDER_FACET else described.extra(_BORDER_FACET)
            mask = find_object(described.descriptors, tokens)
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


def cells_box(mask: npt.NDArray[np.bool_], grid: PatchGrid) -> Box:
    """The box of the cells of a mask ``(h, w)`` in pixels, cut at the image: left, top, right, bottom."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    corners = torch.tensor([[columns[0], rows[0]], [columns[-1] + 1, rows[-1] + 1]], dtype=torch.float32)
    left, top, right, bottom = grid.cells_to_pixels(corners).flatten().tolist()
    height, width = grid.image_hw
    return max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)


def _drawn(image: image_sets.Image, box: Box) -> image_sets.Image:
    """A copy of the image with the box."""
    drawn = image.copy()
    thickness = max(2, min(image.shape[:2]) // 160)
    first, second = (round(box[0]), round(box[1])), (round(box[2]), round(box[3]))
    cv2.rectangle(drawn, first, second, (255, 60, 60), thickness, cv2.LINE_AA)
    return drawn
