"""``bench objects``: objects found without labels and without detections, against exact masks of every instance.

A sequence is a MOTChallenge folder with ``masks/`` beside its images: indexed PNGs by image name, a pixel's value
is the id of its object. The flow runs on the images alone. :mod:`pipeline.evaluation.found_objects` says which
true objects count and how found ones are matched to them; IDF1 and MOTA compare the boxes of the found masks with
those of the true ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pipeline.core.errors import MaskError
from pipeline.core.files import list_images, write_json_whole
from pipeline.core.options import names_in
from pipeline.evaluation.found_objects import FoundCounts, ObjectMatcher, mask_boxes
from pipeline.evaluation.tracking_counts import TrackingScores
from pipeline.evaluation.tracking_metrics import score
from pipeline.flow import FlowConfig, load_flow_config, stream
from pipeline.formats.boxes import from_tracks
from pipeline.formats.mot_folders import OpenedSequence, find_sequences, open_sequence
from pipeline.formats.palette import read_indexed_png
from stages.extract import Extractor


@dataclass(frozen=True, slots=True)
class ObjectScores:
    """What was found in one sequence, or in several together.

    Attributes:
        counts: Of objects.
        tracks: Of their boxes.
        matches: The true object of each found one; empty for several sequences together.
    """

    counts: FoundCounts
    tracks: TrackingScores
    matches: dict[int, int]

    def __add__(self, other: ObjectScores) -> ObjectScores:
        return ObjectScores(self.counts + other.counts, self.tracks + other.tracks, {})

    def as_dict(self) -> dict[str, Any]:
        """Ratios in [0, 1] and counts, ready for JSON."""
        return {
            "recall": self.counts.recall,
            "precision": self.counts.precision,
            "idf1": self.tracks.identity.idf1,
            "mota": self.tracks.clear.mota,
            "true_objects": self.counts.true,
            "true_objects_found": self.counts.true_found,
            "found_objects": self.counts.found,
            "found_objects_right": self.counts.found_right,
            "id_switches": self.tracks.clear.id_switches,
            "matches": {str(found): true for found, true in self.matches.items()},
        }


def bench_objects(
    root: Annotated[Path, typer.Option(help="Folder of MOTChallenge sequences with masks/ of their objects.")],
    sequences: Annotated[str, typer.Option(help="Only these, comma separated.")] = "",
    config: Annotated[Path | None, typer.Option(help="YAML file for the flow.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A config value.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the numbers.")] = None,
) -> None:
    """Objects found without labels: recall, precision and IDF1 against the masks of every true object."""
    opened = [open_sequence(s.folder) for s in find_sequences(root, names=names_in(sequences))]
    for sequence in opened:
        _check_masks(sequence)
    flow = load_flow_config(config, overrides or [])
    extractor = Extractor(flow.extract)
    scores: dict[str, ObjectScores] = {}
    with tqdm(total=sum(len(_truth_paths(s)) for s in opened), desc="bench objects", unit="frame") as bar:
        for sequence in opened:
            scores[sequence.sequence.name] = measure(sequence, flow, extractor, bar)
    if len(scores) > 1:
        first, *others = scores.values()
        scores["all"] = sum(others, first)
    Console(soft_wrap=True).print(_table(scores))
    if output is not None:
        write_json_whole(output, {name: row.as_dict() for name, row in scores.items()})


def measure(
    opened: OpenedSequence, flow: FlowConfig, extractor: Extractor, bar: tqdm[Any] | None = None
) -> ObjectScores:
    """Run the flow on a sequence without any labels and compare its objects with the true ones."""
    rate = float(opened.video.frame_rate)
    config = flow.only("cosegment", "propagate", decode={"image_frame_rate": rate})
    matcher, truths, found = ObjectMatcher(), {}, {}
    paths = _truth_paths(opened)
    for packet in stream(opened.video.path, config, extractor=extractor):
        assert packet.labels is not None
        truth = read_indexed_png(paths[packet.index])
        if truth.shape != packet.frame.image_hw:
            raise MaskError(f"{paths[packet.index]}: the mask is {truth.shape}, the frame {packet.frame.image_hw}")
        matcher.add(truth, packet.labels.index_mask)
        truths[packet.index] = mask_boxes(truth)
        found[packet.index] = mask_boxes(packet.labels.index_mask)
        if bar is not None:
            bar.update()
    tracks = score(from_tracks(truths), from_tracks(found), len(paths))
    return ObjectScores(matcher.counts(), tracks, matcher.matches())


def _truth_paths(opened: OpenedSequence) -> list[Path]:
    folder = opened.sequence.folder / "masks"
    return [folder / f"{image.stem}.png" for image in list_images(opened.video.path)]


def _check_masks(opened: OpenedSequence) -> None:
    missing = [path for path in _truth_paths(opened) if not path.is_file()]
    if missing:
        raise MaskError(
            f"{missing[0]}: no such mask; bench objects needs an indexed PNG of the objects' ids for every frame"
        )


def _table(scores: dict[str, ObjectScores]) -> Table:
    table = Table(box=SIMPLE_HEAD, title="objects without labels", title_justify="left")
    table.add_column("", no_wrap=True)
    for column in ("true", "found", "recall", "precision", "IDF1", "MOTA", "IDSW"):
        table.add_column(column, justify="right")
    for name, row in scores.items():
        counts, tracks = row.counts, row.tracks
        ratios = (counts.recall, counts.precision, tracks.identity.idf1, tracks.clear.mota)
        table.add_row(
            name,
            f"{counts.true_found} of {counts.true}",
            f"{counts.found_right} of {counts.found}",
            *(f"{value:.3f}" for value in ratios),
            str(tracks.clear.id_switches),
            style="bold" if name == "all" else None,
        )
    return table
