"""``coseg``: the foreground a set of images shares, and its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console

from pipeline.core.colors import PART_COLORS
from pipeline.core.errors import MaskError
from pipeline.core.files import write_json_whole
from pipeline.evaluation.part_metrics import cosegmentation_scores
from pipeline.formats.palette import read_indexed_png, write_indexed_png
from pipeline.images import image_sets
from pipeline.images.image_cosegmentation import SetOptions, SetResult, cosegment_images
from pipeline.images.image_sets import DescribedImage, image_extractor
from pipeline.images.set_images import choose_set_method, extract_options, to_set_image
from stages.annotate.drawing import tint
from stages.cosegment.cosegmentation import KmeansOptions

Image = npt.NDArray[np.uint8]

_CROP_SHARE = 0.95


def coseg(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for masks, parts and the overview.")],
    parts: Annotated[int, typer.Option(min=0, max=64, help="Number of parts; 0 lets the elbow rule find it.")] = 4,
    three_stage: Annotated[bool, typer.Option(help="Keep only parts that all images have.")] = False,
    augment: Annotated[
        int, typer.Option(min=0, help="Random crops an image and as many of its mirror image.")
    ] = 0,
    method: Annotated[
        Literal["auto", "vote", "discriminant"],
        typer.Option(help="How foreground is found; auto votes for DINO and learns for other backbones."),
    ] = "auto",
    saliency_threshold: Annotated[float, typer.Option(help="Vote: mean saliency of a cluster.")] = 0.065,
    votes: Annotated[float, typer.Option(help="Vote: percent of the images that must agree.")] = 75.0,
    sample_interval: Annotated[int, typer.Option(min=1, help="k-means is fitted on every n-th cell.")] = 10,
    grabcut: Annotated[bool, typer.Option(help="Refine the foreground with GrabCut.")] = True,
    crf: Annotated[bool, typer.Option(help="Refine the parts with a dense CRF.")] = True,
    filter_outliers: Annotated[
        bool, typer.Option(help="Leave out images that do not belong (CLS filter).")
    ] = False,
    outlier_cosine: Annotated[float, typer.Option(help="Smallest cosine to the mean CLS descriptor.")] = 0.7,
    annotations: Annotated[
        Path | None, typer.Option(help="Folder of true masks by name, for J_m and P_m.")
    ] = None,
    short_side: Annotated[int, typer.Option(help="Short side of the images for the model, in pixels.")] = 448,
    backbone: Annotated[str, typer.Option(help="Name of the backbone.")] = "dinov2_vits14",
    weights: Annotated[str | None, typer.Option(help="Its weights; bundled or timm's hub by default.")] = None,
    facet: Annotated[str, typer.Option(help="Descriptors.")] = "key@11",
    stride: Annotated[int | None, typer.Option(help="Stride of the patches in pixels.")] = None,
    lift: Annotated[str, typer.Option(help="none, auto or a LiFT file.")] = "none",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the crops.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into an existing folder.")] = False,
) -> None:
    """Segment what a set of images has in common, and its parts (Amir et al. 2021)."""
    files = image_sets.find_images(images)
    chosen = choose_set_method(method, backbone)
    extract = {
        "backbone": backbone, "weights": weights, "short_side": short_side, "lift": lift, "stride_px": stride,
        "device": device, "cls": "facet" if filter_outliers else "none", **extract_options(chosen, facet),
    }  # fmt: skip
    extractor = image_extractor(extract, origin="coseg")
    image_sets.claim_folder(output, overwrite=overwrite)
    named = image_sets.load_named(files)
    described = image_sets.describe(named, extractor)
    crops = [
        crop for number, (_, image) in enumerate(named) for crop in make_crops(image, augment, [seed, number])
    ]
    extra = image_sets.describe([("crop", crop) for crop in crops], extractor)
    options = SetOptions(
        kmeans=KmeansOptions(sample_interval=sample_interval),
        method=chosen,
        saliency_threshold=saliency_threshold,
        votes_percent=votes,
        num_parts=parts or None,
        three_stage=three_stage,
        grabcut=grabcut,
        crf=crf,
        outlier_cosine=outlier_cosine if filter_outliers else None,
    )
    cells = [
        to_set_image(d, chosen, backbone=backbone, facet=facet, original=original)
        for group, original in ((described, True), (extra, False))
        for d in group
    ]
    results = cosegment_images(cells, options)
    _write(output, files, described, results, annotations, options)


def make_crops(image: Image, count: int, seed: list[int]) -> list[Image]:
    """``count`` random crops of 0.95 of each side from the image, and as many from its mirror image."""
    rng = np.random.default_rng(seed)
    height, width = int(image.shape[0] * _CROP_SHARE), int(image.shape[1] * _CROP_SHARE)
    crops = []
    for source in (image, image[:, ::-1]):
        for _ in range(count):
            top = int(rng.integers(0, image.shape[0] - height + 1))
            left = int(rng.integers(0, image.shape[1] - width + 1))
            crops.append(np.ascontiguousarray(source[top : top + height, left : left + width]))
    return crops


def _write(
    output: Path,
    files: list[Path],
    described: list[DescribedImage],
    results: list[SetResult],
    annotations: Path | None,
    options: SetOptions,
) -> None:

    for folder in ("foreground", "parts"):
        (output / folder).mkdir(exist_ok=True)
    pictures, entries = [], []
    for file, image, result in zip(files, described, results, strict=True):
        write_indexed_png(output / "foreground" / f"{image.name}.png", result.foreground.astype(np.uint8))
        write_indexed_png(output / "parts" / f"{image.name}.png", result.parts)
        pictures.append(tint(image.image, result.parts, PART_COLORS, 0.65))
        areas = np.bincount(result.parts.ravel(), minlength=1)
        entries.append(
            {
                "image": str(file),
                "outlier": result.outlier,
                "foreground_share": float(result.foreground.mean()),
                "parts": {str(n): float(areas[n] / result.parts.size) for n in np.flatnonzero(areas[1:]) + 1},
            }
        )
    content: dict[str, Any] = {"method": options.method, "images": entries}
    console = Console()
    if annotations is not None:
        content["J_m"], content["P_m"] = _score(annotations, described, results)
        console.print(f"J_m {content['J_m']:.4f}, P_m {content['P_m']:.4f}")
    image_sets.write_picture(output / "overview.png", image_sets.contact_sheet(pictures))
    write_json_whole(output / "coseg.json", content)
    if not any(result.foreground.any() for result in results):
        console.print("nothing salient was found: all masks are empty")
    console.print(f"{len(files)} images: {output / 'coseg.json'}, {output / 'overview.png'}")


def _score(annotations: Path, described: list[DescribedImage], results: list[SetResult]) -> tuple[float, float]:

    truths = []
    for image in described:
        truth = read_indexed_png(annotations / f"{image.name}.png") > 0
        if truth.shape != image.image.shape[:2]:
            raise MaskError(f"{annotations / image.name}.png: is {truth.shape}, its image {image.image.shape[:2]}")
        truths.append(truth)
    return cosegmentation_scores([result.foreground for result in results], truths)
