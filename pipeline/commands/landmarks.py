"""``landmarks``: keypoints of faces and birds from the centers of unsupervised parts."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pipeline.core.arrays import normalize_rows
from pipeline.core.colors import PART_COLORS
from pipeline.core.errors import ConfigError, MediaError
from pipeline.core.files import write_bytes_whole, write_json_whole
from pipeline.core.options import listed_numbers
from pipeline.formats.image_folder import load_image
from pipeline.formats.landmarks import LandmarkImage, LandmarkSet, read_celeba, read_cub
from pipeline.images import image_sets
from pipeline.images.image_cosegmentation import PartModel, SetImage, SetOptions, fit_part_model
from pipeline.images.image_sets import image_extractor
from pipeline.images.landmarks import Points, fit_regression, landmark_errors, part_centers
from stages.annotate.drawing import tint
from stages.cosegment.cosegmentation import KmeansOptions
from stages.extract import Extractor

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """One set with one backbone and one number of parts.

    Attributes:
        backbone: Its name.
        group: Name of the set.
        parts: Number of parts.
        errors: Normalized errors of the test images, ``(N, K)``.
        baseline: The same for the mean keypoints of the training images.
        missing: Share of the parts that the test images lack.
        pictures: Test images with parts, true and predicted keypoints.
    """

    backbone: str
    group: str
    parts: int
    errors: Points
    baseline: Points
    missing: float
    pictures: list[image_sets.Image]


def landmarks(
    root: Annotated[Path, typer.Option(help="Folder of CelebA or of CUB_200_2011.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for scores, plot and pictures.")],
    dataset: Annotated[Literal["celeba", "cub"], typer.Option(help="Which of them.")] = "celeba",
    parts: Annotated[str, typer.Option(help="Numbers of parts, separated by commas.")] = "4,8",
    classes: Annotated[str, typer.Option(help="CUB: numbers of the classes.")] = "1,2,3",
    aligned: Annotated[bool, typer.Option(help="CelebA: the aligned images.")] = False,
    min_face: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="CelebA: smallest share of the image that the face covers.")
    ] = 0.0,
    fit_images: Annotated[int, typer.Option(min=2, help="Training images the parts are found on.")] = 100,
    max_images: Annotated[
        int, typer.Option(min=0, help="At most so many images for training and for testing; 0 takes all.")
    ] = 0,
    method: Annotated[
        Literal["auto", "vote", "discriminant"], typer.Option(help="How foreground is found; see coseg.")
    ] = "auto",
    saliency_threshold: Annotated[float, typer.Option(help="Vote: mean saliency of a cluster.")] = 0.065,
    votes: Annotated[float, typer.Option(help="Vote: percent of the images that must agree.")] = 75.0,
    sample_interval: Annotated[int, typer.Option(min=1, help="k-means is fitted on every n-th cell.")] = 10,
    crf: Annotated[bool, typer.Option(help="Refine the parts with a dense CRF.")] = True,
    backbones: Annotated[str, typer.Option("--backbone", help="Names, separated by commas.")] = "dinov2_vits14",
    weights: Annotated[str | None, typer.Option(help="Weights of a single backbone.")] = None,
    facet: Annotated[str, typer.Option(help="Descriptors.")] = "key@11",
    short_side: Annotated[int, typer.Option(help="Short side of the images for the model, in pixels.")] = 224,
    stride: Annotated[int | None, typer.Option(help="Stride of the patches in pixels.")] = None,
    lift: Annotated[str, typer.Option(help="none, auto or a LiFT file.")] = "none",
    seed: Annotated[int, typer.Option(help="Of the choice of images.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into an existing folder.")] = False,
) -> None:
    """Predict keypoints from part centers on CelebA or CUB, with the papers' normalized error."""
    names, counts = backbones.split(","), _whole_numbers(parts, "--parts")
    if weights is not None and len(names) > 1:
        raise ConfigError("--weights belongs to one backbone; name one with --backbone")
    sets = (
        [read_celeba(root, aligned=aligned, min_face=min_face)]
        if dataset == "celeba"
        else read_cub(root, _whole_numbers(classes, "--classes"))
    )
    sets = [_fewer(own, max_images, seed) for own in sets]
    outcomes: list[Outcome] = []
    for name in names:
        chosen = method if method != "auto" else ("vote" if name.startswith("dino_") else "discriminant")
        extract = {
            "backbone": name, "weights": weights, "facets": (facet,), "short_side": short_side, "lift": lift,
            "stride_px": stride, "saliency": "cls_attention", "device": device,
        }  # fmt: skip
        extractor = image_extractor(extract, origin="landmarks")
        options = [
            SetOptions(
                kmeans=KmeansOptions(sample_interval=sample_interval),
                method="vote" if chosen == "vote" else "discriminant",
                saliency_threshold=saliency_threshold,
                votes_percent=votes,
                num_parts=count,
                crf=crf,
                grabcut=False,
            )
            for count in counts
        ]
        for own in sets:
            outcomes += measure(own, name, extractor, options, fit_images=fit_images, seed=seed)
    image_sets.claim_folder(output, overwrite=overwrite)
    _write(output, outcomes, sets[0].point_names)


def _whole_numbers(text: str, option: str) -> list[int]:
    values = list(listed_numbers(option, text, int))
    if min(values) < 1 or max(values) > 255:
        raise ConfigError(f"{option} {text}: give numbers from 1 to 255")
    return values


def _fewer(own: LandmarkSet, most: int, seed: int) -> LandmarkSet:
    """At most ``most`` images for training and for testing, drawn at random; 0 keeps all."""
    if not most:
        return own
    kept: list[LandmarkImage] = []
    for train in (True, False):
        images = [image for image in own.images if image.train == train]
        order = np.random.default_rng([seed, train]).permutation(len(images))[:most]
        kept += [images[place] for place in sorted(order)]
    return LandmarkSet(own.name, own.point_names, tuple(kept))


def measure(
    own: LandmarkSet,
    backbone: str,
    extractor: Extractor,
    options: Sequence[SetOptions],
    *,
    fit_images: int,
    seed: int,
) -> list[Outcome]:
    """Fit parts and regression on the training images of a set, and measure on its test images.

    Args:
        own: The set.
        backbone: Name of the backbone, for the result.
        extractor: Gives the features.
        options: One for each number of parts.
        fit_images: Number of training images the parts are found on.
        seed: Of their choice.

    Raises:
        MediaError: An image cannot be read, or no foreground was found.
    """
    training = [image for image in own.images if image.train]
    order = np.random.default_rng([seed, 2]).permutation(len(training))[:fit_images]
    found = [_described(training[place], extractor) for place in tqdm(order, desc=f"{own.name} fit", unit="image")]
    models = [fit_part_model(found, len(found), option) for option in options]
    if any(model is None for model in models):
        raise MediaError(
            f"{own.name}: no foreground was found with {backbone}; try --method or --saliency-threshold"
        )
    del found
    shape = (len(own.images), len(models))
    sizes = np.zeros((len(own.images), 2))
    centers: list[list[Points]] = [[] for _ in range(shape[1])]
    shown: list[tuple[image_sets.Image, list[npt.NDArray[np.uint8]]]] = []
    tests = [place for place, image in enumerate(own.images) if not image.train]
    for place, image in enumerate(tqdm(own.images, desc=own.name, unit="image")):
        described = _described(image, extractor)
        sizes[place] = described.image.shape[1::-1]
        maps = [_apply(model, described) for model in models]
        for store, option, parts in zip(centers, options, maps, strict=True):
            store.append(part_centers(parts, option.num_parts or int(parts.max())))
        if place in tests[:_SHOWN]:
            shown.append((described.image, maps))
    return [
        _outcome(own, backbone, option, np.stack(store), sizes, [(image, maps[n]) for image, maps in shown])
        for n, (option, store) in enumerate(zip(options, centers, strict=True))
    ]


def _described(image: LandmarkImage, extractor: Extractor) -> SetImage:
    if not image.path.is_file():
        raise MediaError(f"{image.path}: no such image")
    (described,) = image_sets.describe([(image.path.stem, load_image(image.path))], extractor)
    return SetImage(
        described.image, described.grid, normalize_rows(described.rows), described.saliency.ravel(), None, True
    )


def _apply(model: PartModel | None, image: SetImage) -> npt.NDArray[np.uint8]:
    assert model is not None
    return model.apply(image).parts


def _outcome(
    own: LandmarkSet,
    backbone: str,
    option: SetOptions,
    centers: Points,
    sizes: Points,
    shown: list[tuple[image_sets.Image, npt.NDArray[np.uint8]]],
) -> Outcome:
    train = np.asarray([image.train for image in own.images])
    shares = centers / sizes[:, None]
    points = np.stack([image.points for image in own.images]) / sizes[:, None]
    visible = np.stack([image.visible for image in own.images])
    fitted = fit_regression(shares[train], points[train], visible[train])
    constant = fit_regression(np.zeros((int(train.sum()), 0, 2)), points[train], visible[train])
    tests = [image for image in own.images if not image.train]
    predicted = fitted.predict(shares[~train]) * sizes[~train][:, None]
    mean = constant.predict(np.zeros((len(tests), 0, 2))) * sizes[~train][:, None]
    pictures = [
        _drawn(image, parts, test, own_points)
        for (image, parts), test, own_points in zip(shown, tests, predicted, strict=False)
    ]
    return Outcome(
        backbone,
        own.name,
        centers.shape[1],
        landmark_errors(predicted, tests),
        landmark_errors(mean, tests),
        float(np.isnan(centers[~train]).any(axis=2).mean()),
        pictures,
    )


def _drawn(
    image: image_sets.Image, parts: npt.NDArray[np.uint8], truth: LandmarkImage, predicted: Points
) -> image_sets.Image:
    """The image with its parts, true keypoints as rings and predicted ones as crosses."""
    drawn = tint(image, parts, PART_COLORS, 0.5)
    radius = max(2, min(image.shape[:2]) // 60)
    for (x, y), seen, (px, py) in zip(truth.points, truth.visible, predicted, strict=True):
        if seen:
            cv2.circle(drawn, (round(x), round(y)), radius, (255, 255, 255), max(1, radius // 3), cv2.LINE_AA)
            place = (int(np.clip(px, -1e4, 1e4)), int(np.clip(py, -1e4, 1e4)))
            cv2.drawMarker(drawn, place, (255, 60, 60), cv2.MARKER_CROSS, 2 * radius, max(1, radius // 3))
    return drawn


def _write(output: Path, outcomes: list[Outcome], names: tuple[str, ...]) -> None:
    rows = []
    console = Console(soft_wrap=True)
    table = Table(title="normalized error of the keypoints, percent", title_justify="left")
    for column in ("backbone", "set", "parts", "error", "mean points", "parts missing"):
        table.add_column(column, justify="left" if column in ("backbone", "set") else "right")
    for outcome in outcomes:
        error, baseline = 100 * float(np.nanmean(outcome.errors)), 100 * float(np.nanmean(outcome.baseline))
        seen = [column[~np.isnan(column)] for column in outcome.errors.T]
        by_point = {n: 100 * float(v.mean()) if v.size else None for n, v in zip(names, seen, strict=True)}
        rows.append(
            {
                "backbone": outcome.backbone,
                "set": outcome.group,
                "parts": outcome.parts,
                "test_images": len(outcome.errors),
                "error_percent": error,
                "error_of_mean_points_percent": baseline,
                "parts_missing": outcome.missing,
                "error_percent_by_point": by_point,
            }
        )
        first = (outcome.backbone, outcome.group, str(outcome.parts))
        table.add_row(*first, f"{error:.2f}", f"{baseline:.2f}", f"{100 * outcome.missing:.1f} %")
        sheet = image_sets.contact_sheet(outcome.pictures)
        name = f"{outcome.backbone}_{outcome.group}_{outcome.parts}.png".replace("/", "_")
        image_sets.write_picture(output / name, sheet)
    write_json_whole(output / "landmarks.json", rows)
    write_bytes_whole(output / "landmarks.png", plot_errors(rows))
    console.print(table)
    console.print(f"wrote {output / 'landmarks.json'}")


def plot_errors(rows: list[dict[str, Any]]) -> bytes:
    """The error of every keypoint as bars, one color per row of the table, as PNG."""
    names = list(rows[0]["error_percent_by_point"])
    figure = Figure(figsize=(max(6.0, 0.7 * len(names)), 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.8 / len(rows)
    for place, row in enumerate(rows):
        values = [row["error_percent_by_point"][name] or 0.0 for name in names]
        label = f"{row['backbone']}, {row['set']}, {row['parts']} parts"
        axes.bar(np.arange(len(names)) + width * place, values, width, label=label)
    axes.set_xticks(np.arange(len(names)) + 0.4 - width / 2, names, rotation=45, ha="right")
    axes.set_ylabel("normalized error, percent")
    axes.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
