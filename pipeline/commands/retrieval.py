"""``retrieval``: how well features find the same object again after a gap of frames."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipeline.commands.box_data import masks_of, packets_of
from pipeline.core.errors import ConfigError, LabelFileError
from pipeline.core.files import write_text_whole
from pipeline.core.options import names_in, numbers_in
from pipeline.core.records import Detections, Packet
from pipeline.evaluation.box_sequences import TRACKING_CONFIG, BoxSequence, load_sequences
from pipeline.evaluation.retrieval import FrameObjects, GapCounts, RetrievalScore
from pipeline.evaluation.track_plots import draw_gaps, write_gaps
from pipeline.flow import FlowConfig, load_flow_config
from stages.extract import Extractor
from stages.track import RoiConfig
from stages.track.descriptors import describe_boxes

WEIGHTINGS = ("none", "saliency", "mask")


def retrieval(
    root: Annotated[Path, typer.Option(help="Folder of MOTChallenge sequences, or of BDD100K images and labels.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the curves (JSON, CSV, PNG).")],
    data_format: Annotated[Literal["mot", "bdd"], typer.Option("--format", help="Format of the data.")] = "mot",
    split: Annotated[str | None, typer.Option(help="Only this split, for example val.")] = None,
    sequences: Annotated[str, typer.Option(help="Only these, comma separated.")] = "",
    gaps: Annotated[str, typer.Option(help="Gaps in frames, comma separated.")] = "1,2,5,10,20,30",
    bins: Annotated[str, typer.Option(help="Sides of the pooled boxes, comma separated: 1 is the mean.")] = "1,7",
    weighting: Annotated[str, typer.Option(help="none, saliency, mask (with --masks); comma separated.")] = "none",
    masks: Annotated[
        Path | None,
        typer.Option(help="Folder with NAME/masks: indexed PNGs, a pixel is its object's id."),
    ] = None,
    mask_frames: Annotated[
        Literal["all", "first"], typer.Option(help="Use every mask, or propagate the first one.")
    ] = "all",
    metric: Annotated[Literal["euclidean", "cosine"], typer.Option(help="Distance of descriptors.")] = "euclidean",
    min_visibility: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out objects that are less visible, where the data says.")
    ] = 0.05,
    classes: Annotated[str, typer.Option(help="Only these classes, comma separated.")] = "",
    config: Annotated[
        Path, typer.Option(help="YAML file; extract.facets are what is compared.")
    ] = TRACKING_CONFIG,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A config value.")
    ] = None,
) -> None:
    """Find every object again after a gap of frames: instance and category accuracy, table and curves."""
    flow = load_flow_config(config, overrides or [])
    lengths = numbers_in("--gaps", gaps)
    kinds = _kinds(flow, numbers_in("--bins", bins), names_in(weighting), has_masks=masks is not None)
    videos = load_sequences(data_format, root, split=split, names=names_in(sequences), classes=names_in(classes))
    _check(videos)
    given = [masks_of(masks, video, mask_frames) for video in videos]
    extractor = Extractor(flow.extract)
    scores = {kind.name: RetrievalScore(lengths, metric) for kind in kinds}
    for video, annotated in zip(videos, given, strict=True):
        for line in video.warnings:
            typer.echo(f"warning: {line}", err=True)
        _Video(video, flow, kinds, min_visibility, annotated).ask(extractor, scores)
    request = {"metric": metric, "min_visibility": min_visibility, "masks": mask_frames if masks else "none"}
    curves = {name: score.counts for name, score in scores.items()}
    _report(output, curves, 1 / float(videos[0].video.frame_rate), request, flow)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of features: a facet (empty for the first) and how boxes are pooled from it."""

    name: str
    facet: str
    roi: RoiConfig


def _kinds(flow: FlowConfig, bins: Sequence[int], weightings: Sequence[str], *, has_masks: bool) -> list[Kind]:
    """Every facet of the config with every side and weighting asked for."""
    wrong = [name for name in weightings if name not in WEIGHTINGS]
    if wrong or not weightings:
        raise ConfigError(f"--weighting {','.join(weightings)}: choose from {', '.join(WEIGHTINGS)}")
    if "mask" in weightings and not has_masks:
        raise ConfigError("--weighting mask needs --masks, the folder with the objects' masks")
    kinds = []
    for position, facet in enumerate(flow.extract.facets):
        lifted = " LiFT" if flow.extract.lift != "none" and position == 0 else ""
        for side in bins:
            for weighting in weightings:
                by = "" if weighting == "none" else f", by {weighting}"
                roi = flow.track.roi.model_copy(update={"bins": side, "weighting": weighting})
                kinds.append(Kind(f"{facet}{lifted} {side}x{side}{by}", facet if position else "", roi))
    return kinds


def _check(videos: Sequence[BoxSequence]) -> None:
    for video in videos:
        if not len(video.targets):
            raise LabelFileError(f"{video.name}: has no ground truth, and retrieval needs identities")


@dataclass(frozen=True, slots=True)
class _Video:
    """One video and what to ask of it."""

    video: BoxSequence
    flow: FlowConfig
    kinds: Sequence[Kind]
    min_visibility: float
    masks: Mapping[int, npt.NDArray[np.uint8]] | None

    def ask(self, extractor: Extractor, scores: dict[str, Any]) -> None:
        """Feed every kind's score with the video's objects; frames are read once for all kinds."""
        feeds = {kind.name: scores[kind.name].start_video() for kind in self.kinds}
        boxes = self._objects()
        packets = packets_of(
            self.video,
            self.flow,
            extractor,
            stages=("propagate",) if self.masks else (),
            masks=self.masks,
            keep_features=True,
        )
        for packet in packets:
            found, ids = boxes(packet.index)
            for kind in self.kinds:
                feeds[kind.name](_describe(packet, found, ids, kind))

    def _objects(self) -> Any:
        """A function that gives the boxes and identities of a frame."""
        targets = self.video.targets
        targets = targets.select(targets.visibility >= self.min_visibility)
        rows = targets.by_frame(self.video.num_frames)
        height, width = self.video.video.image_hw
        limit = np.array([width, height, width, height], np.float64)

        def objects(index: int) -> tuple[Detections, npt.NDArray[np.int64]]:
            inside = np.clip(targets.xyxy[rows[index]], 0, limit)
            has_area = (inside[:, 2:] > inside[:, :2]).all(axis=1)
            kept = rows[index][has_area]
            ids = targets.ids[kept]
            found = Detections(
                inside[has_area].astype(np.float32),
                np.ones(len(kept), np.float32),
                tuple(targets.categories[row] for row in kept),
                ids if self.masks else np.zeros(len(kept), np.int64),
            )
            return found, ids

        return objects


def _describe(packet: Packet, found: Detections, ids: npt.NDArray[np.int64], kind: Kind) -> FrameObjects:
    assert packet.features is not None
    pooled = describe_boxes(packet.features, packet.labels, found, kind.roi, kind.facet)
    flat = pooled.reshape(len(found), int(np.prod(pooled.shape[1:])))
    return FrameObjects(packet.index, flat, ids, found.categories)


def _report(
    output: Path,
    curves: dict[str, dict[int, GapCounts]],
    seconds: float,
    request: dict[str, Any],
    flow: FlowConfig,
) -> None:
    """Print the table; write JSON, CSV and PNG."""
    console = Console()
    console.print(_table(curves, seconds))
    content = {
        "request": request,
        "seconds_per_frame": seconds,
        "curves": {
            name: {str(gap): dict(_numbers(counts)) for gap, counts in by_gap.items()}
            for name, by_gap in curves.items()
        },
        "config": flow.model_dump(mode="json"),
    }
    write_text_whole(output / "retrieval.json", json.dumps(content, indent=2) + "\n")
    write_gaps(output / "retrieval.csv", curves, seconds)
    draw_gaps(output / "retrieval.png", "Finding an object again after a gap", curves, seconds)
    console.print(f"curves: {output / 'retrieval.png'}, .csv, .json", markup=False, highlight=False)


def _numbers(counts: GapCounts) -> Iterator[tuple[str, float | int | None]]:
    for name in (
        "queries",
        "answerable",
        "same_instance",
        "same_category",
        "instance",
        "instance_all",
        "category",
    ):
        value = getattr(counts, name)
        yield name, None if value != value else value


def _table(curves: dict[str, dict[int, GapCounts]], seconds: float) -> Any:
    """Instance accuracy and category accuracy, a row a kind of features, a column a gap."""
    table = Table(title="instance / category accuracy by gap in frames", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("features", no_wrap=True)
    first = next(iter(curves.values()))
    for gap in first:
        table.add_column(f"{gap}\n{gap * seconds:.2f} s", justify="right", no_wrap=True)
    for name, by_gap in curves.items():
        table.add_row(name, *(f"{c.instance:.3f}/{c.category:.3f}" for c in by_gap.values()))
    counts = (f"{c.answerable}/{c.queries}" for c in first.values())
    table.add_row("answerable/all queries", *counts, style="dim")
    return table
