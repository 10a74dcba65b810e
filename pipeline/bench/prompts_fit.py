"""``bench prompts-fit``: the weights by which masks from clicks and boxes are chosen, fitted on known masks.

For each object of the first, middle and last frame of every sequence the candidates of a click, of further clicks
and of a box are measured, and their IoU with the true mask is regressed on the measures (ridge, centered per
object, every sequence weighing the same). Once more for each sequence without it and without those that show
the same objects: ``bench prompts`` tests a sequence with these weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console

from pipeline.bench.prompts import LabeledFrame, box_around, labeled_frames, next_click, pole
from pipeline.core.arrays import FloatArray
from pipeline.core.files import write_json_whole
from pipeline.formats.masks import object_ids
from pipeline.prompts import Point, describers
from pipeline.prompts.prompt import Prompt
from pipeline.prompts.ranking import COLUMNS, Weights, pairwise_iou
from pipeline.prompts.segmentation import FrameSegmenter, Pool
from stages.extract import ExtractConfig, Extractor

NamedWeights = dict[str, dict[str, float]]

RIDGE = 0.3
"""Of standardized columns; 0.03 to 0.3 differ by less than 0.01 in J."""
FRAMES = (0.0, 0.5, 1.0)
"""Which frames of a sequence are used, in shares of its length."""
NUM_FURTHER = 2
SMALLEST_OBJECT_PX = 200
START: NamedWeights = {
    kind: {name: float(name == deciding) for name in COLUMNS[kind]}
    for kind, deciding in (("click", "contrast"), ("further", "agreement"), ("box", "box_fit"))
}
"""What the first masks are chosen by, from which the next samples are made."""
SAME_OBJECTS: Mapping[str, frozenset[str]] = {
    "park": frozenset({"libby", "dog", "dance-twirl"}),
    "river": frozenset({"blackswan", "dog", "motocross-jump", "car-shadow", "cows", "drift-chicane"}),
    "street": frozenset({"car-shadow", "bmx-trees", "dance-twirl", "soapbox", "motocross-jump"}),
}
"""The sequences that objects and backgrounds of composites were taken from; composites may share them, too."""


@dataclass(slots=True)
class Sample:
    """The candidates of one prompt, measured.

    Attributes:
        sequence: Where the object is.
        columns: float32 ``(K, M)``.
        ious: float32 ``(K,)``, with the true mask.
    """

    sequence: str
    columns: FloatArray
    ious: FloatArray


@dataclass(slots=True)
class Subject:
    """One object in one frame.

    Attributes:
        sequence: Where it is.
        truth: bool ``(H, W)``.
        segmenter: Of the frame.
    """

    sequence: str
    truth: npt.NDArray[np.bool_]
    segmenter: FrameSegmenter


@dataclass(frozen=True, slots=True)
class Fit:
    """What was fitted.

    Attributes:
        weights: By kind and column, from all sequences.
        left_out: The same by the sequence that was left out.
        counts: Objects by sequence.
    """

    weights: NamedWeights
    left_out: dict[str, NamedWeights]
    counts: dict[str, int]


def bench_prompts_fit(
    davis: Annotated[Path | None, typer.Option(help="DAVIS root.")] = None,
    mot: Annotated[Path | None, typer.Option(help="Folder of sequences with img1/ and masks/.")] = None,
    split: Annotated[str, typer.Option(help="List of DAVIS sequences.")] = "dev",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="JSON file; pipeline/prompts/weights.json is the one in use.")
    ] = Path("weights.json"),
) -> None:
    """Fit the weights that choose among the candidates of clicks and boxes."""
    console = Console()
    extractor = Extractor(ExtractConfig())
    frames = labeled_frames(davis, split, mot, FRAMES)
    result = fit(frames, extractor, console.print)
    parts = [f"--davis {davis}" if davis else "", f"--mot {mot}" if mot else "", f"--split {split}"]
    origin = {
        "command": " ".join(["bench prompts-fit", *filter(None, parts)]),
        "date": time.strftime("%Y-%m-%d"),
        "sequences": sorted(result.counts),
        "objects": sum(result.counts.values()),
    }
    write_json_whole(output, {"origin": origin, "weights": result.weights, "left_out": result.left_out})
    console.print(f"wrote {output}")


def fit(frames: Iterable[LabeledFrame], extractor: Extractor, tell: Callable[[str], None]) -> Fit:
    """The weights for frames with known masks.

    Which candidates a box or a further click has depends on the weights; so they are fitted in rounds, each with
    the samples of the last one's weights (those without the sample's own sequence).

    Args:
        frames: With their masks.
        extractor: Of the run; see :func:`pipeline.prompts.describers`.
        tell: Called with a line for each round.
    """
    subjects = list(_subjects(frames, extractor))
    names = sorted({subject.sequence for subject in subjects})
    tell(f"{len(subjects)} objects of {len(names)} sequences")
    current = dict.fromkeys(names, START)
    samples: dict[str, list[Sample]] = {}
    for step, kinds in enumerate((("click", "box"), ("box", "further"), ("further",))):
        made = [sampled for subject in subjects for sampled in _sampled(subject, current[subject.sequence], kinds)]
        for kind in kinds:
            samples[kind] = [sample for found, sample in made if found == kind]
        known = {kind: own for kind, own in samples.items() if own}
        current = {
            name: {**START, **{kind: ridge(kind, _without(own, name)) for kind, own in known.items()}}
            for name in names
        }
        tell(f"round {step + 1}: {', '.join(f'{len(own)} of {kind}' for kind, own in samples.items())}")
    counts = {name: sum(subject.sequence == name for subject in subjects) for name in names}
    return Fit({kind: ridge(kind, own) for kind, own in samples.items()}, current, counts)


def ridge(kind: str, samples: Sequence[Sample]) -> dict[str, float]:
    """Weights of the columns of one kind: least squares of the IoU with a penalty on standardized weights.

    Columns and IoUs are centered per sample, because only differences between candidates of one prompt count.
    Every sequence has the same weight, every sample of it too, and every candidate of that.
    """
    per_sequence = {name: sum(s.sequence == name for s in samples) for name in {s.sequence for s in samples}}
    rows = np.concatenate([s.columns - s.columns.mean(axis=0) for s in samples]).astype(np.float64)
    targets = np.concatenate([s.ious - s.ious.mean() for s in samples]).astype(np.float64)
    shares = np.concatenate([np.full(len(s.ious), 1 / len(s.ious) / per_sequence[s.sequence]) for s in samples])
    shares /= shares.sum()
    scales = np.sqrt(shares @ rows**2) + 1e-6
    standardized = rows / scales
    weighted = standardized * shares[:, None]
    solution = np.linalg.solve(weighted.T @ standardized + RIDGE * np.eye(rows.shape[1]), weighted.T @ targets)
    return {name: round(float(value), 5) for name, value in zip(COLUMNS[kind], solution / scales, strict=True)}


def related(sequence: str) -> set[str]:
    """A sequence and those that show the same objects or backgrounds."""
    if sequence in SAME_OBJECTS:
        return {sequence, *SAME_OBJECTS, *SAME_OBJECTS[sequence]}
    return {sequence, *(name for name, sources in SAME_OBJECTS.items() if sequence in sources)}


def _without(samples: Sequence[Sample], sequence: str) -> list[Sample]:
    excluded = related(sequence)
    return [sample for sample in samples if sample.sequence not in excluded]


def _subjects(frames: Iterable[LabeledFrame], extractor: Extractor) -> Iterator[Subject]:
    describe_whole, describe_window = describers(extractor)
    for labeled in frames:
        segmenter = FrameSegmenter(describe_whole(labeled.image), describe_window)
        for object_id in object_ids(labeled.mask):
            truth = labeled.mask == object_id
            if truth.sum() >= SMALLEST_OBJECT_PX:
                yield Subject(labeled.sequence, truth, segmenter)


def _sampled(subject: Subject, weights: NamedWeights, kinds: Sequence[str]) -> Iterator[tuple[str, Sample]]:
    """The samples of an object for some kinds of prompts."""
    segmenter = subject.segmenter.with_weights(Weights.of(weights))
    clicks: list[Prompt] = [Point(*pole(subject.truth))]
    if "click" in kinds:
        yield "click", _sample(subject, segmenter.pool(clicks))
    if "box" in kinds:
        yield "box", _sample(subject, segmenter.pool([box_around(subject.truth)]))
    for _ in range(NUM_FURTHER if "further" in kinds else 0):
        clicks.append(next_click(segmenter.object_mask(clicks), subject.truth))
        yield "further", _sample(subject, segmenter.pool(clicks))


def _sample(subject: Subject, pool: Pool) -> Sample:
    truth = pool.raster.from_pixels(subject.truth)
    return Sample(subject.sequence, pool.columns, pairwise_iou(np.concatenate([truth[None], pool.masks]))[0, 1:])
