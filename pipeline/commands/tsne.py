"""``tsne``: the descriptors of images or of a video as points in the plane."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pipeline.core.arrays import FloatArray, IntArray, normalize_rows
from pipeline.core.errors import ConfigError
from pipeline.core.files import write_json_whole
from pipeline.core.options import names_in
from pipeline.images.image_sets import DescribedImage, claim_folder, describe, image_extractor
from pipeline.local.common_parts import common_parts, part_of_cells
from pipeline.local.embedding import EARLY_STEPS, EmbeddingSettings, SampledCells, embed, sample_cells
from pipeline.local.image_source import Named, load_images
from pipeline.local.labeled_set import IGNORED, LabeledSet, Labels
from pipeline.local.open_set import Layout, open_labeled_set
from pipeline.local.patches import class_counts, majority
from pipeline.local.scatter import Coloring, View, draw_views, make_coloring, write_page
from stages.extract.backbone.facets import parse_facet

COLORINGS = ("image", "part", "class", "layer")
_PART_FACET = "key@-1"


def tsne(
    source: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT...", help="Images, folders, videos; with --format a root."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the page, picture and points.")],
    color: Annotated[str, typer.Option(help="Of image, part, layer, class (--format).")] = "image,part",
    facet: Annotated[
        list[str] | None, typer.Option(help="facet@layer[:norm]; several are several embeddings. Default key@11.")
    ] = None,
    layout: Annotated[Layout | None, typer.Option("--format", help="Layout of data with labels.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Every n-th image of a folder, frame of a video.")] = 1,
    limit: Annotated[int, typer.Option(min=1, help="Most images, spread over all.")] = 50,
    interval: Annotated[int, typer.Option(min=1, help="Every n-th descriptor of an image.")] = 10,
    perplexity: Annotated[float, typer.Option(min=1, help="Effective number of neighbors.")] = 30.0,
    early_exaggeration: Annotated[float, typer.Option(min=1, help="In the first 250 steps.")] = 12.0,
    exaggeration: Annotated[float, typer.Option(min=1, help="After them; 1 is plain t-SNE.")] = 1.0,
    steps: Annotated[int, typer.Option(min=10, help="Steps after the first 250.")] = 500,
    parts: Annotated[int, typer.Option(min=1, max=64, help="Number of parts to color by.")] = 4,
    short_side: Annotated[int, typer.Option(min=1, help="Short side of the images for the model, pixels.")] = 224,
    stride: Annotated[int | None, typer.Option(help="Stride of the patches in pixels.")] = None,
    backbone: Annotated[str, typer.Option(help="Name of the backbone.")] = "dinov2_vits14",
    weights: Annotated[str | None, typer.Option(help="Its weights; bundled or timm's hub by default.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the optimization.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into an existing folder.")] = False,
) -> None:
    """Embed descriptors by t-SNE (Amir et al. 2021, figure 3): a page to explore, a picture, JSON."""
    wanted = _colorings(color, layout)
    facets = list(dict.fromkeys(str(parse_facet(text)) for text in facet or ["key@11"]))
    settings = EmbeddingSettings(interval, perplexity, early_exaggeration, exaggeration, steps, seed)
    named, truths, names = _load(source, layout, every, limit)
    extractor = image_extractor(
        {
            "backbone": backbone, "weights": weights, "facets": tuple(dict.fromkeys([_PART_FACET, *facets])),
            "short_side": short_side, "stride_px": stride, "device": device,
            "saliency": "cls_attention" if "part" in wanted else "none",
        },
        origin="tsne",
    )  # fmt: skip
    claim_folder(output, overwrite=overwrite)
    described: list[DescribedImage] = []
    for one in tqdm(named, desc="describe", unit="image", file=sys.stderr, mininterval=0.5):
        described.extend(describe([one], extractor))
    cells = sample_cells(described, interval)
    colorings = _shared_colorings(wanted, described, cells, truths, names, backbone, parts)
    views = _embed_all(described, cells, facets, colorings, settings, joint="layer" in wanted)
    _write(output, views, described, settings, backbone)


def _colorings(text: str, layout: str | None) -> list[str]:
    wanted = names_in(text)
    wrong = [name for name in wanted if name not in COLORINGS]
    if wrong or not wanted:
        raise ConfigError(f"--color {text}: choose from {', '.join(COLORINGS)}")
    if "class" in wanted and layout is None:
        raise ConfigError("--color class needs data with labels: name its layout with --format")
    return wanted


def _load(
    source: Sequence[Path], layout: Layout | None, every: int, limit: int
) -> tuple[list[Named], list[Labels], list[str]]:
    """Images, and with a layout their labels and the names of classes."""
    if layout is None:
        return load_images(source, every=every, limit=limit), [], []
    if len(source) != 1:
        raise ConfigError("with --format, INPUT is one folder")
    data: LabeledSet = open_labeled_set(layout, source[0]).spread(None, every, limit)
    loaded = [(image.name, *image.load()) for image in data.images]
    return (
        [(name, image) for name, image, _ in loaded],
        [labels for _, _, labels in loaded],
        [one.name for one in data.classes],
    )


def _shared_colorings(
    wanted: Sequence[str],
    described: Sequence[DescribedImage],
    cells: SampledCells,
    truths: Sequence[Labels],
    names: Sequence[str],
    backbone: str,
    parts: int,
) -> list[Coloring]:
    """The colorings that are the same for every facet."""
    found = []
    if "image" in wanted:
        found.append(make_coloring("image", cells.images, [image.name for image in described]))
    if "part" in wanted:
        results = common_parts(described, backbone, parts)
        by_image = [part_of_cells(result, image) for result, image in zip(results, described, strict=True)]
        titles = ["background", *(f"part {number}" for number in range(1, parts + 1))]
        found.append(make_coloring("part", _of(cells, by_image), titles, gray=0))
    if "class" in wanted:
        by_image = [
            majority(class_counts(truth, image.grid, len(names)))
            for truth, image in zip(truths, described, strict=True)
        ]
        labels = _of(cells, by_image)
        labels[labels == IGNORED] = len(names)
        found.append(make_coloring("class", labels, [*names, "ignored"], gray=len(names)))
    return found


def _of(cells: SampledCells, values: Sequence[npt.NDArray[Any]]) -> IntArray:
    return np.asarray(cells.of(values), np.int64)


def _embed_all(
    described: Sequence[DescribedImage],
    cells: SampledCells,
    facets: Sequence[str],
    colorings: Sequence[Coloring],
    settings: EmbeddingSettings,
    *,
    joint: bool,
) -> list[View]:
    """An embedding per facet, and one of all facets together where layers are what colors it."""
    rows: dict[str, FloatArray] = {
        facet: np.asarray(cells.of([_rows(image, facet) for image in described]), np.float32) for facet in facets
    }
    total = (EARLY_STEPS + settings.steps) * (len(facets) * bool(colorings) + joint)
    views = []
    with tqdm(total=total, desc="t-SNE", unit="step", file=sys.stderr, mininterval=0.5) as progress:
        for facet in facets if colorings else ():
            places = embed(rows[facet], settings, progress.update)
            views.append(View(facet, places, cells.images, cells.cells, tuple(colorings)))
        if joint:
            # Layers have different scales; cosine affinities look at directions only.
            every = np.concatenate([normalize_rows(rows[facet]) for facet in facets])
            labels = np.repeat(np.arange(len(facets)), len(cells.cells)).astype(np.int64)
            repeated = [Coloring(c.name, np.tile(c.labels, len(facets)), c.names, c.colors) for c in colorings]
            views.append(
                View(
                    "all layers",
                    embed(every, settings, progress.update),
                    np.tile(cells.images, len(facets)),
                    np.tile(cells.cells, len(facets)),
                    (make_coloring("layer", labels, list(facets)), *repeated),
                )
            )
    return views


def _rows(image: DescribedImage, facet: str) -> FloatArray:
    maps = image.descriptors if facet == _PART_FACET else image.extra(facet)
    return np.ascontiguousarray(maps.reshape(maps.shape[0], -1).T)


def _write(
    output: Path,
    views: Sequence[View],
    described: Sequence[DescribedImage],
    settings: EmbeddingSettings,
    backbone: str,
) -> None:
    note = (
        f"{backbone}, every {settings.interval}th descriptor, cosine affinities, perplexity "
        f"{settings.perplexity:g}, exaggeration {settings.early_exaggeration:g}, then {settings.exaggeration:g}. "
        "Drag to move, scroll to zoom, point at a descriptor to see where it is; click a label to hide it."
    )
    write_page(output / "tsne.html", "Descriptors by t-SNE", note, views, described)
    draw_views(output / "tsne.png", views)
    content = {
        "backbone": backbone,
        "settings": {name: getattr(settings, name) for name in settings.__slots__},
        "images": [{"name": image.name, "grid_hw": image.grid.grid_hw} for image in described],
        "views": [
            {
                "features": view.name,
                "xy": np.round(view.places.astype(np.float64), 4).tolist(),
                "image": view.images.tolist(),
                "cell": view.cells.tolist(),
                **{c.name: [c.names[label] for label in c.labels.tolist()] for c in view.colorings},
            }
            for view in views
        ],
    }
    write_json_whole(output / "tsne.json", content)
    table = Table(box=SIMPLE_HEAD)
    for heading in ("features", "images", "points"):
        table.add_column(heading, justify="left" if heading == "features" else "right")
    for view in views:
        table.add_row(view.name, str(len(described)), str(len(view.places)))
    console = Console()
    console.print(table)
    console.print(f"{output}: tsne.html, tsne.png, tsne.json", markup=False, highlight=False)
