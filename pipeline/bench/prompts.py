"""``bench prompts``: masks from clicks and boxes on first frames, beside two simple baselines.

The clicks are those of the interactive segmentation protocol: the first at the pole of inaccessibility of the true
mask, each further one at the pole of the largest connected error (Sofiiuk et al., Reviving Iterative Training with
Mask Guidance for Interactive Segmentation, 2021, section 4).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.console import Console
from rich.table import Table

from pipeline.core.errors import InputError
from pipeline.core.files import list_images, write_json_whole
from pipeline.evaluation.davis_metrics import region_similarity
from pipeline.formats.davis import open_davis
from pipeline.formats.image_folder import load_image
from pipeline.formats.masks import object_ids
from pipeline.formats.palette import read_indexed_png
from pipeline.prompts import Box, FrameSegmenter, Point, describers
from pipeline.prompts.features import FrameDescription
from pipeline.prompts.prompt import Prompt
from pipeline.prompts.ranking import left_out_weights
from stages.extract import ExtractConfig, Extractor

BoolMask = npt.NDArray[np.bool_]

CLICKS = (1, 3, 5)
FIRST_ANSWER = "1 click, at once"
COLUMNS = (FIRST_ANSWER, "1 click", "3 clicks", "5 clicks", "box", "cosine, 1 click", "GrabCut, box")
_THRESHOLDS = np.linspace(-0.2, 0.95, 116)


class Seconds(NamedTuple):
    """What something took."""

    cpu: float
    wall: float


@dataclass(frozen=True, slots=True)
class LabeledFrame:
    """A frame with its true masks.

    Attributes:
        sequence: Its name.
        image: uint8 ``(H, W, 3)``.
        mask: uint8 ``(H, W)``, object ids.
        composite: Whether it is from the folder of composites.
    """

    sequence: str
    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    composite: bool


@dataclass(slots=True)
class ObjectScores:
    """J of one object by column, and what the answers cost."""

    sequence: str
    object_id: int
    composite: bool
    scores: dict[str, float] = field(default_factory=dict)
    first_answers: list[Seconds] = field(default_factory=list)
    fine_answers: list[Seconds] = field(default_factory=list)


def bench_prompts(
    davis: Annotated[Path | None, typer.Option(help="DAVIS root; the first frames of a split.")] = None,
    mot: Annotated[Path | None, typer.Option(help="Folder of sequences with img1/ and masks/.")] = None,
    split: Annotated[str, typer.Option(help="List of DAVIS sequences.")] = "dev",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the numbers.")] = None,
) -> None:
    """J of masks from 1, 3 and 5 clicks and from a box; cosine at its best threshold and GrabCut beside them.

    Sequences that the weights were fitted on are tested with weights fitted without them.
    """
    console = Console()
    describe_whole, describe_window = describers(Extractor(ExtractConfig()))
    left_out = left_out_weights()
    results: list[ObjectScores] = []
    for labeled in labeled_frames(davis, split, mot):
        weights = left_out.get(labeled.sequence)
        segmenter = FrameSegmenter(describe_whole(labeled.image), describe_window, weights=weights)
        for object_id in object_ids(labeled.mask):
            scores = ObjectScores(labeled.sequence, object_id, labeled.composite)
            score_object(scores, labeled.mask == object_id, segmenter)
            results.append(scores)
    unseen = sum(result.sequence not in left_out for result in results)
    console.print(_table(results))
    console.print(
        f"{len(results) - unseen} objects with weights fitted without their sequence and those that share objects "
        f"with it, {unseen} of other sequences"
    )
    costs = _costs(results)
    for name, cost in costs.items():
        console.print(f"{name}: " + ", ".join(f"{key} {value * 1000:.0f} ms" for key, value in cost.items()))
    if output is not None:
        rows = [{"sequence": r.sequence, "object": r.object_id, **r.scores} for r in results]
        write_json_whole(output, {"objects": rows, "mean": dict(_groups(results)), "seconds": costs})


def labeled_frames(
    davis: Path | None, split: str, mot: Path | None, shares: Sequence[float] = (0.0,)
) -> Iterator[LabeledFrame]:
    """Frames of all sequences.

    Args:
        davis: DAVIS root; masks are those of DAVIS-2016, one object each.
        split: List of sequences.
        mot: Folder of sequences with ``img1/`` and ``masks/``.
        shares: Which frames, 0 is the first and 1 the last.

    Raises:
        InputError: Neither folder is given.
    """
    if davis is None and mot is None:
        raise InputError("nothing to measure on: give --davis or --mot")
    for sequence in open_davis(davis, "2016", split=split) if davis is not None else ():
        images = list_images(sequence.frames_dir)
        for index in _picked(shares, min(len(images), len(sequence.frame_names))):
            mask = sequence.annotation(sequence.frame_names[index])
            yield LabeledFrame(sequence.name, load_image(images[index]), mask, False)
    for folder in sorted(path.parent for path in mot.glob("*/masks")) if mot is not None else ():
        pairs = list(zip(list_images(folder / "img1"), list_images(folder / "masks"), strict=False))
        for index in _picked(shares, len(pairs)):
            image, labels = pairs[index]
            yield LabeledFrame(folder.name, load_image(image), read_indexed_png(labels), True)


def _picked(shares: Sequence[float], count: int) -> list[int]:
    return [round(share * (count - 1)) for share in shares]


def score_object(result: ObjectScores, truth: BoolMask, segmenter: FrameSegmenter) -> None:
    """Fill in every column of one object; ``truth`` is bool ``(H, W)``."""
    clicks: list[Prompt] = [Point(*pole(truth))]
    with _timed(result.first_answers):
        mask = segmenter.object_mask(clicks, fine=False)
    result.scores[FIRST_ANSWER] = region_similarity(mask, truth)
    for count in range(1, max(CLICKS) + 1):
        with _timed(result.fine_answers):
            mask = segmenter.object_mask(clicks)
        if count in CLICKS:
            result.scores[f"{count} click{'s' * (count > 1)}"] = region_similarity(mask, truth)
        clicks.append(next_click(mask, truth))
    box = box_around(truth)
    with _timed(result.fine_answers):
        mask = segmenter.object_mask([box])
    result.scores["box"] = region_similarity(mask, truth)
    result.scores["cosine, 1 click"] = cosine_baseline(segmenter.description, pole(truth), truth)
    result.scores["GrabCut, box"] = region_similarity(grabcut_baseline(segmenter.description.image, box), truth)


def pole(region: BoolMask) -> tuple[float, float]:
    """The pixel of a region that is farthest from its border, as (x, y) of its center."""
    depth = cv2.distanceTransform(np.pad(region.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return float(column) + 0.5, float(row) + 0.5


def next_click(mask: BoolMask, truth: BoolMask) -> Point:
    """The click in the middle of the largest connected error; positive where object is missing."""
    missing, excess = _largest_part(truth & ~mask), _largest_part(mask & ~truth)
    positive = bool(missing.sum() >= excess.sum())
    return Point(*pole(missing if positive else excess), positive=positive)


def box_around(truth: BoolMask) -> Box:
    """The tight box of a mask."""
    rows, columns = np.flatnonzero(truth.any(axis=1)), np.flatnonzero(truth.any(axis=0))
    return Box(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def cosine_baseline(description: FrameDescription, xy: tuple[float, float], truth: BoolMask) -> float:
    """J of the cosine similarity to the clicked cell, at the threshold that is best for this very object."""
    rows = description.raw_directions
    similarity = torch.from_numpy(rows @ rows[description.cell(*xy)]).reshape(1, *description.grid.grid_hw)
    pixels = description.grid.upsample(similarity)[0].numpy()
    return max(region_similarity(pixels > threshold, truth) for threshold in _THRESHOLDS)


def grabcut_baseline(image: npt.NDArray[np.uint8], box: Box) -> BoolMask:
    """OpenCV's GrabCut from the box alone, five iterations."""
    left, top, right, bottom = (int(value) for value in box.xyxy)
    classes = np.zeros(image.shape[:2], np.uint8)
    rectangle = (left, top, right - left, bottom - top)
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(np.ascontiguousarray(image[..., ::-1]), classes, rectangle, *models, 5, cv2.GC_INIT_WITH_RECT)
    return np.isin(classes, (cv2.GC_FGD, cv2.GC_PR_FGD))


@contextmanager
def _timed(found: list[Seconds]) -> Iterator[None]:
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    found.append(Seconds(time.process_time() - cpu, time.perf_counter() - wall))


def _largest_part(region: BoolMask) -> BoolMask:
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=8)
    if count < 2:
        return region
    return np.asarray(labels == 1 + statistics[1:, cv2.CC_STAT_AREA].argmax(), np.bool_)


def _groups(results: list[ObjectScores]) -> Iterator[tuple[str, dict[str, float]]]:
    """The means that are shown, by name."""
    worst = sorted(results, key=lambda result: result.scores[COLUMNS[1]])[: max(1, len(results) // 3)]
    davis, composites = ([r for r in results if r.composite == kind] for kind in (False, True))
    groups = (("DAVIS", davis), ("composites", composites), ("all", results), ("worst third at 1 click", worst))
    for name, group in groups:
        if group:
            yield (
                f"{name} ({len(group)})",
                {column: float(np.mean([result.scores[column] for result in group])) for column in COLUMNS},
            )


def _costs(results: list[ObjectScores]) -> dict[str, dict[str, float]]:
    """Seconds of an answer: mean and longest, CPU and wall."""
    found = {}
    for name in ("first_answers", "fine_answers"):
        seconds = [moment for result in results for moment in getattr(result, name)]
        found[name.replace("_", " ")] = {
            "CPU mean": float(np.mean([moment.cpu for moment in seconds])),
            "CPU longest": float(np.max([moment.cpu for moment in seconds])),
            "wall mean": float(np.mean([moment.wall for moment in seconds])),
            "wall longest": float(np.max([moment.wall for moment in seconds])),
        }
    return found


def _table(results: list[ObjectScores]) -> Table:
    table = Table(title="J of masks from prompts on first frames", title_justify="left")
    table.add_column("object")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    rows: list[tuple[str, dict[str, Any]]] = [(f"{r.sequence} {r.object_id}", r.scores) for r in results]
    for name, scores in (*rows, *_groups(results)):
        table.add_row(name, *(f"{scores[column]:.3f}" for column in COLUMNS))
    return table
