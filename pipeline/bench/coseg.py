"""``bench coseg``: the foreground that ``coseg`` finds in sets of frames of DAVIS, against their true masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pipeline.core.colors import PART_COLORS
from pipeline.core.errors import OutputError
from pipeline.core.files import write_json_whole
from pipeline.core.options import names_in
from pipeline.evaluation.davis_metrics import region_similarity
from pipeline.evaluation.part_metrics import cosegmentation_scores
from pipeline.formats.davis import DavisSequence, open_davis
from pipeline.images import image_sets
from pipeline.images.image_cosegmentation import SetOptions, cosegment_images
from pipeline.images.set_images import choose_set_method, extract_options, to_set_image
from stages.annotate.drawing import tint
from stages.cosegment.cosegmentation import KmeansOptions

_SETS = (
    "blackswan,cows,dog,libby;bmx-trees,breakdance,dance-twirl,soapbox;"
    "car-shadow,drift-chicane,motocross-jump,soapbox"
)


def bench_coseg(
    root: Annotated[Path, typer.Option(help="DAVIS folder; all objects of a frame count as one.")],
    sequences: Annotated[
        str, typer.Option(help="The sequences of each set, comma separated; sets are separated by ;.")
    ] = _SETS,
    frames: Annotated[int, typer.Option(min=1, help="Frames of each sequence, spread evenly.")] = 3,
    split: Annotated[str, typer.Option(help="List of sequences, under ImageSets/2016.")] = "dev",
    method: Annotated[Literal["auto", "vote", "discriminant"], typer.Option(help="See coseg.")] = "auto",
    parts: Annotated[int, typer.Option(min=1, max=64, help="Number of parts.")] = 4,
    short_side: Annotated[int, typer.Option(help="Short side for the model, in pixels.")] = 448,
    backbone: Annotated[str, typer.Option(help="Name of the backbone.")] = "dinov2_vits14",
    facet: Annotated[str, typer.Option(help="Descriptors.")] = "key@11",
    lift: Annotated[str, typer.Option(help="none, auto or a LiFT file.")] = "none",
    picture: Annotated[Path | None, typer.Option(help="PNG file for the parts of all sets.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the numbers.")] = None,
) -> None:
    """Measure J_m and P_m of co-segmentation on sets of frames of several sequences."""
    for path in (picture, output):
        if path is not None and path.is_dir():
            raise OutputError(f"{path}: is a folder; give the name of a file")
    chosen = choose_set_method(method, backbone)
    options = {"backbone": backbone, "short_side": short_side, "lift": lift, **extract_options(chosen, facet)}
    extractor = image_sets.image_extractor(options, origin="bench coseg")
    set_options = SetOptions(kmeans=KmeansOptions(sample_interval=10), method=chosen, num_parts=parts)
    groups = [names_in(group) for group in sequences.split(";")]
    sets = [open_davis(root, "2016", split=split, sequences=group) for group in groups]
    scores: dict[str, dict[str, float]] = {}
    pictures = []
    with tqdm(total=frames * sum(len(found) for found in sets), desc="bench coseg", unit="frame") as bar:
        for found in sets:
            images, truths, names = [], [], []
            for sequence in found:
                for name in spread_names(sequence, frames):
                    named = image_sets.load_named([sequence.frames_dir / f"{name}.jpg"])
                    (described,) = image_sets.describe(named, extractor)
                    images.append(to_set_image(described, chosen, backbone=backbone, facet=facet))
                    truths.append(sequence.annotation(name) == 1)
                    names.append(f"{sequence.name}/{name}")
                    bar.update()
            results = cosegment_images(images, set_options)
            own = [region_similarity(r.foreground, truth) for r, truth in zip(results, truths, strict=True)]
            j_mean, precision = cosegmentation_scores([r.foreground for r in results], truths)
            key = ",".join(sequence.name for sequence in found)
            scores[key] = {"J_m": j_mean, "P_m": precision, **dict(zip(names, own, strict=True))}
            pictures += [tint(i.image, r.parts, PART_COLORS, 0.65) for i, r in zip(images, results, strict=True)]
    mean = {key: float(np.mean([row[key] for row in scores.values()])) for key in ("J_m", "P_m")}
    _show(scores, mean, chosen)
    if picture is not None:
        image_sets.write_picture(picture, image_sets.contact_sheet(pictures, columns=2 * frames))
    if output is not None:
        write_json_whole(output, {"method": chosen, "sets": scores, "mean": mean})


def spread_names(sequence: DavisSequence, count: int) -> list[str]:
    """Names of ``count`` frames spread evenly over a sequence, without its first and last."""
    positions = np.linspace(0, len(sequence.frame_names) - 1, count + 2)[1:-1]
    return [sequence.frame_names[round(float(position))] for position in positions]


def _show(scores: dict[str, dict[str, float]], mean: dict[str, float], method: str) -> None:
    table = Table("", "J", "P", title=f"coseg, {method}", title_justify="left")
    for name, row in scores.items():
        for frame, score in row.items():
            if "/" in frame:
                table.add_row(f"  {frame}", f"{score:.3f}", "")
        table.add_row(name, f"{row['J_m']:.3f}", f"{row['P_m']:.3f}")
    table.add_row("mean of the sets", f"{mean['J_m']:.3f}", f"{mean['P_m']:.3f}")
    Console().print(table)
