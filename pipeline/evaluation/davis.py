"""Scoring a folder of index masks against DAVIS: the semi-supervised protocol of 2016 and of 2017.

The first frame is given and the last one is left out, as in the official toolkits. 2016: one merged object
per sequence, averages over sequences. 2017: object i of the result against object i of the truth, averages over
all objects of all sequences; void pixels of the truth count as background.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import MaskError
from pipeline.evaluation.davis_metrics import Statistics, boundary_measure, combine, region_similarity, statistics
from pipeline.formats.davis import DavisSequence, Year, results_missing, year_mask
from pipeline.formats.masks import VOID, object_ids
from pipeline.formats.palette import read_indexed_png

ObjectStatistics = tuple[Statistics, Statistics]


def score_results(sequences: Sequence[DavisSequence], results: Path) -> dict[str, Any]:
    """J and F of a folder ``results/<sequence>/<frame>.png``, per sequence and over all.

    Returns:
        ``{"sequences": {name: {"J": {mean, recall, decay}, "F": ..., "frames": n, "objects": k}}, "global":
        {"J": ..., "F": ..., "J&F": x}}``; with more than one object, a sequence also has ``"per_object"``.

    Raises:
        MaskError: Results lack frames or have another size, or more objects than the truth.
    """
    check_complete(sequences, results)
    pool: list[ObjectStatistics] = []
    report: dict[str, Any] = {}
    for sequence in sequences:
        scored = score_sequence(sequence, results)
        pool.extend(scored.values())
        entry = combine(list(scored.values()))
        entry["frames"] = len(sequence.frame_names)
        entry["objects"] = len(scored)
        if len(scored) > 1:
            entry["per_object"] = {str(i): {"J": j.as_dict(), "F": f.as_dict()} for i, (j, f) in scored.items()}
        report[sequence.name] = entry
    return {"sequences": report, "global": combine(pool)}


def check_complete(sequences: Sequence[DavisSequence], results: Path) -> None:
    """Raise a MaskError that names what a folder of results lacks."""
    if not results.is_dir():
        raise MaskError(f"{results}: no such folder of results; expected <sequence>/00000.png in it")
    problems = []
    for sequence in sequences:
        lacking = results_missing(sequence, results)
        if len(lacking) == len(sequence.frame_names):
            problems.append(f"{sequence.name} (all {len(lacking)} frames)")
        elif lacking:
            problems.append(f"{sequence.name}: {', '.join(lacking[:8])}{', ...' * (len(lacking) > 8)}")
    if problems:
        raise MaskError(f"{results}: the results lack frames of {'; '.join(problems)}")


def score_sequence(sequence: DavisSequence, results: Path) -> dict[int, ObjectStatistics]:
    """The J and F statistics of each object of one sequence, by object id.

    Raises:
        MaskError: A result of another size, more objects than the truth, or too few frames to score.
    """
    names = sequence.frame_names[1:-1]
    if not names:
        raise MaskError(
            f"{sequence.frames_dir}: {len(sequence.frame_names)} frames; the protocol leaves out the first and "
            "the last, so at least 3 are needed"
        )
    num_objects = max(object_ids(sequence.first_mask()))
    with ThreadPoolExecutor(max_workers=2) as pool:  # OpenCV and Pillow release the interpreter lock
        frames = list(pool.map(lambda name: _score_frame(sequence, results, name, num_objects), names))
    values = np.array(frames)
    return {k + 1: (statistics(values[:, k, 0]), statistics(values[:, k, 1])) for k in range(num_objects)}


def _score_frame(sequence: DavisSequence, results: Path, name: str, num_objects: int) -> list[tuple[float, float]]:
    path = results / sequence.name / f"{name}.png"
    truth = sequence.annotation(name)
    prediction = _prediction(path, sequence.year)
    if prediction.shape != truth.shape:
        raise MaskError(
            f"{path}: the result is {prediction.shape[1]} x {prediction.shape[0]} pixels, the annotation "
            f"{truth.shape[1]} x {truth.shape[0]}"
        )
    highest = int(prediction.max())
    if highest > num_objects:
        raise MaskError(
            f"{path}: object {highest} in the result, but '{sequence.name}' has {num_objects} (the highest id of "
            "its first annotation); the official rule refuses results with more objects than the truth"
        )
    scores = []
    for number in range(1, num_objects + 1):
        found, wanted = prediction == number, truth == number
        scores.append((region_similarity(found, wanted), boundary_measure(found, wanted)))
    return scores


def _prediction(path: Path, year: Year) -> npt.NDArray[np.uint8]:
    values = year_mask(read_indexed_png(path), year)
    return np.where(values == VOID, np.uint8(0), values)
