"""``spair``: semantic correspondence on SPair-71k, by LiFT's or by Amir et al.'s protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import typer
from PIL import Image as Pillow
from rich.console import Console
from tqdm import tqdm

from pipeline.core.files import write_json_whole
from pipeline.evaluation.pck import PointErrors, mean_over_categories, nearest_cells, transfer_points
from pipeline.formats.image_folder import load_image
from pipeline.formats.spair import SpairPair, list_pairs, read_pair
from pipeline.images.image_sets import describe, image_extractor
from stages.extract import Extractor

_ALPHAS = (0.1, 0.05, 0.01)


def spair(
    root: Annotated[Path, typer.Option(help="Folder of SPair-71k.")],
    protocol: Annotated[
        Literal["lift", "amir"], typer.Option(help="lift: PCK by the box; amir: PCK by the image.")
    ] = "lift",
    pairs: Annotated[
        int | None, typer.Option(help="Pairs a category; 100 for lift, 20 for amir by default.")
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the square (lift) or short side (amir), in pixels.")] = 224,
    backbone: Annotated[str, typer.Option(help="Name of the backbone.")] = "dinov2_vits14",
    weights: Annotated[str | None, typer.Option(help="Its weights; bundled or timm's hub by default.")] = None,
    facet: Annotated[str | None, typer.Option(help="key@11 for lift, key@9 for amir by default.")] = None,
    stride: Annotated[int | None, typer.Option(help="Stride of the patches in pixels.")] = None,
    lift: Annotated[str, typer.Option(help="none, auto or a LiFT file.")] = "none",
    lift_iterations: Annotated[int, typer.Option(help="Times LiFT doubles the resolution.")] = 1,
    split: Annotated[str, typer.Option(help="test, val or trn.")] = "test",
    seed: Annotated[int, typer.Option(help="Of the choice of pairs, drawn with replacement.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the scores.")] = None,
) -> None:
    """Measure point correspondence (PCK) on SPair-71k."""
    listed = list_pairs(root, split)
    options: dict[str, Any] = {
        "backbone": backbone, "weights": weights, "stride_px": stride, "lift": lift, "device": device,
        "lift_iterations": lift_iterations, "saliency": "none", "cls": "none",
    }  # fmt: skip
    if protocol == "lift":
        options |= {"facets": (facet or "key@11",), "input_hw": (size, size)}
    else:
        options |= {"facets": (facet or "key@9",), "short_side": size, "log_bins": 2, "resize": "lanczos"}
    extractor = image_extractor(options, origin="spair")
    rng = np.random.default_rng(seed)
    count = pairs or (100 if protocol == "lift" else 20)
    errors: dict[str, list[PointErrors]] = {}
    with tqdm(total=count * len(listed), unit="pair") as progress:
        for category, files in listed.items():
            for number in rng.integers(0, len(files), count):
                pair = read_pair(files[number], root)
                measure = _by_box if protocol == "lift" else _by_image
                errors.setdefault(category, []).append(measure(pair, extractor, size))
                progress.update()
    definition: Literal["image", "box"] = "box" if protocol == "lift" else "image"
    scores = {f"PCK@{alpha:g}": mean_over_categories(errors, alpha, definition) for alpha in _ALPHAS}
    console = Console()
    for name, by_category in scores.items():
        console.print(f"{name} by {definition} size: {100 * by_category['mean']:.2f}")
    if output is not None:
        write_json_whole(
            output, {"protocol": protocol, "definition": definition, "pairs": count, "scores": scores}
        )


def letterbox(image: npt.NDArray[np.uint8], size_px: int) -> tuple[npt.NDArray[np.uint8], float, tuple[int, int]]:
    """The image scaled (Lanczos) into the middle of a black square.

    Returns:
        The square, the scale, and the offset (x, y): a point p of the image is at ``p * scale + offset``.
    """
    height, width = image.shape[:2]
    scale = size_px / max(height, width)
    new = (max(1, round(width * scale)), max(1, round(height * scale)))
    offset = (int((size_px - new[0]) / 2), int((size_px - new[1]) / 2))
    square = np.zeros((size_px, size_px, 3), np.uint8)
    resized = np.asarray(Pillow.fromarray(image).resize(new, Pillow.Resampling.LANCZOS))
    square[offset[1] : offset[1] + new[1], offset[0] : offset[0] + new[0]] = resized
    return square, scale, offset


def _by_box(pair: SpairPair, extractor: Extractor, size: int) -> PointErrors:

    squares = [letterbox(load_image(path), size) for path in (pair.source, pair.target)]
    source, target = describe([("a", squares[0][0]), ("b", squares[1][0])], extractor)
    placed = [
        np.asarray(points * scale + np.asarray(offset), np.float32)
        for points, (_, scale, offset) in zip((pair.source_points, pair.target_points), squares, strict=True)
    ]
    found = transfer_points(source.features.data, target.features.data, torch.from_numpy(placed[0]), size)
    distances = np.linalg.norm(found.numpy() - placed[1], axis=1)
    return PointErrors(distances, float(size), _longer_side(pair) * squares[1][1])


def _by_image(pair: SpairPair, extractor: Extractor, size: int) -> PointErrors:

    named = [("a", load_image(pair.source)), ("b", load_image(pair.target))]
    source, target = (describe([image], extractor)[0] for image in named)
    where = source.grid.nearest_cells(torch.from_numpy(pair.source_points))
    cells = nearest_cells(source.features.data, target.features.data, where)
    found = target.grid.cells_to_pixels(cells.float() + 0.5).numpy()
    distances = np.linalg.norm(found - pair.target_points, axis=1)
    return PointErrors(distances, float(max(named[1][1].shape[:2])), _longer_side(pair))


def _longer_side(pair: SpairPair) -> float:
    left, top, right, bottom = pair.target_box
    return max(right - left, bottom - top)
