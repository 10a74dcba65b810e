"""``bench prompts``: masks from clicks and boxes on first frames, beside two simple baselines.

The clicks are those of the interactive segmentation protocol: the first at the pole of inaccessibility of the true
mask, each further one at the pole of the largest connected error (Sofiiuk et al., Reviving Iterative Training with
Mask Guidance for Interactive Segmentation, 2021, section 4).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.console import Console
from rich.table import Table

from pipeline.core.errors import InputError
from pipeline.core.files import list_images, write_json_whole
from pipeline.core.records import Frame
from pipeline.evaluation.davis_metrics import region_similarity
from pipeline.formats.davis import open_davis
from pipeline.formats.image_folder import load_image
from pipeline.formats.masks import object_ids
from pipeline.formats.palette import read_indexed_png
from pipeline.prompts import Box, FrameSegmenter, Point, describe_frame, prompt_extractor
from pipeline.prompts.features import FrameDescription
from pipeline.prompts.prompt import Prompt
from stages.extract import ExtractConfig, Extractor

BoolMask = npt.NDArray[np.bool_]

CLICKS = (1, 3, 5)
COLUMNS = (*(f"{count} click{'s' * (count > 1)}" for count in CLICKS), "box", "cosine, 1 click", "GrabCut, box")
_THRESHOLDS = np.linspace(-0.2, 0.95, 116)


@dataclass(slots=True)
class ObjectScores:
    """J of one object by column, and the seconds of each answer."""

    sequence: str
    object_id: int
    scores: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)


def bench_prompts(
    davis: Annotated[Path | None, typer.Option(help="DAVIS root; the first frames of a split.")] = None,
    mot: Annotated[Path | None, typer.Option(help="Folder of sequences with img1/ and masks/.")] = None,
    split: Annotated[str, typer.Option(help="List of DAVIS sequences.")] = "dev",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the numbers.")] = None,
) -> None:
    """J of masks from 1, 3 and 5 clicks and from a box; cosine at its best threshold and GrabCut beside them."""
    console = Console()
    extractor = prompt_extractor(Extractor(ExtractConfig()))
    results: list[ObjectScores] = []
    for sequence, frame, mask in _first_frames(davis, split, mot):
        description = describe_frame(frame, extractor)
        segmenter = FrameSegmenter(description)
        for object_id in object_ids(mask):
            results.append(score_object(sequence, object_id, mask == object_id, description, segmenter))
    console.print(_table(results))
    seconds = [moment for result in results for moment in result.seconds]
    summary = {"mean_seconds": float(np.mean(seconds)), "longest_seconds": float(np.max(seconds))}
    console.print(
        f"one answer, given features: {summary['mean_seconds'] * 1000:.0f} ms CPU time on average, "
        f"{summary['longest_seconds'] * 1000:.0f} ms at most"
    )
    if output is not None:
        rows = [{"sequence": r.sequence, "object": r.object_id, **r.scores} for r in results]
        write_json_whole(output, {"objects": rows, "mean": _mean(results), **summary})


def score_object(
    sequence: str, object_id: int, truth: BoolMask, description: FrameDescription, segmenter: FrameSegmenter
) -> ObjectScores:
    """Every column of one object; ``truth`` is bool ``(H, W)``."""
    result = ObjectScores(sequence, object_id)
    clicks: list[Prompt] = [Point(*pole(truth))]
    for count in range(1, max(CLICKS) + 1):
        mask = _timed(segmenter, clicks, result)
        if count in CLICKS:
            result.scores[COLUMNS[CLICKS.index(count)]] = region_similarity(mask, truth)
        clicks.append(next_click(mask, truth))
    box = box_around(truth)
    result.scores["box"] = region_similarity(_timed(segmenter, [box], result), truth)
    result.scores["cosine, 1 click"] = cosine_baseline(description, pole(truth), truth)
    result.scores["GrabCut, box"] = region_similarity(grabcut_baseline(description.image, box), truth)
    return result


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


def _timed(segmenter: FrameSegmenter, prompts: list[Prompt], result: ObjectScores) -> BoolMask:
    started = time.process_time()
    mask = segmenter.object_mask(prompts)
    result.seconds.append(time.process_time() - started)
    return mask


def _largest_part(region: BoolMask) -> BoolMask:
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=8)
    if count < 2:
        return region
    return np.asarray(labels == 1 + statistics[1:, cv2.CC_STAT_AREA].argmax(), np.bool_)


def _first_frames(
    davis: Path | None, split: str, mot: Path | None
) -> Iterator[tuple[str, Frame, npt.NDArray[np.uint8]]]:
    if davis is None and mot is None:
        raise InputError("nothing to measure on: give --davis or --mot")
    for sequence in open_davis(davis, "2016", split=split) if davis is not None else ():
        image = load_image(list_images(sequence.frames_dir)[0])
        yield sequence.name, Frame(image, 0, 0.0), sequence.first_mask()
    folders = sorted(path.parent for path in mot.glob("*/masks")) if mot is not None else []
    for folder in folders:
        image = load_image(list_images(folder / "img1")[0])
        yield folder.name, Frame(image, 0, 0.0), read_indexed_png(list_images(folder / "masks")[0])


def _mean(results: list[ObjectScores]) -> dict[str, float]:
    return {name: float(np.mean([result.scores[name] for result in results])) for name in COLUMNS}


def _table(results: list[ObjectScores]) -> Table:
    table = Table(title="J of masks from prompts on first frames", title_justify="left")
    table.add_column("object")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    rows: list[tuple[str, dict[str, Any]]] = [(f"{r.sequence} {r.object_id}", r.scores) for r in results]
    worst = sorted(results, key=lambda result: result.scores[COLUMNS[0]])[: max(1, len(results) // 3)]
    for name, scores in (*rows, ("mean", _mean(results)), ("worst third at 1 click", _mean(worst))):
        table.add_row(name, *(f"{scores[column]:.3f}" for column in COLUMNS))
    return table
