"""``bench precision``: quality in bf16 against fp32, sequence by sequence.

One pass of the flow over a DAVIS sequence gives the propagated mask of its first annotation (J and F) and the
foreground that is found without labels (J); one over a MOTChallenge sequence gives HOTA. Every result is written
as soon as it is there, and read instead of measured again when the command is called once more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pipeline.bench.tracking import make_task
from pipeline.core.errors import ConfigError
from pipeline.core.files import write_json_whole
from pipeline.core.options import names_in
from pipeline.evaluation.box_sequences import TRACKING_CONFIG
from pipeline.evaluation.davis_metrics import boundary_measure, region_similarity
from pipeline.evaluation.tracking_metrics import score
from pipeline.flow import FlowConfig, load_flow_config, stream
from pipeline.formats.boxes import from_tracks, to_detections
from pipeline.formats.davis import DavisSequence, open_davis
from pipeline.formats.mot_folders import OpenedSequence, find_sequences, open_sequence
from stages.extract import ExtractConfig, Extractor

TOLERANCE = 0.2
"""Points by which the mean of a measure may fall."""

MEASURES = ("J&F", "foreground J", "HOTA")


@dataclass(frozen=True, slots=True)
class Case:
    """Something to measure: a name, a text that tells settings apart, and the measurement itself."""

    name: str
    settings: str
    measure: Callable[[Extractor], dict[str, float]]


def bench_precision(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; those there are kept.")],
    root: Annotated[Path | None, typer.Option(help="DAVIS folder; all objects count as one.")] = None,
    split: Annotated[str, typer.Option(help="List of sequences, under ImageSets/2016.")] = "val",
    sequences: Annotated[str, typer.Option(help="Only these, comma separated; DAVIS and MOT alike.")] = "",
    mot: Annotated[Path | None, typer.Option(help="Folder of MOTChallenge sequences with detections.")] = None,
    precisions: Annotated[str, typer.Option(help="What is compared with the first.")] = "fp32,bf16",
    every: Annotated[int, typer.Option(min=1, help="Take every n-th frame.")] = 1,
    config: Annotated[Path | None, typer.Option(help="YAML file for the flow on DAVIS.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
) -> None:
    """J and F of propagation, J of the foreground, HOTA of tracking, in each precision."""
    chosen = names_in(precisions)
    known = get_args(ExtractConfig.model_fields["precision"].annotation)
    if unknown := [name for name in chosen if name not in known]:
        raise ConfigError(f"--precisions: there is no '{unknown[0]}'; precisions: {', '.join(known)}")
    if root is None and mot is None:
        raise ConfigError("give --root, --mot or both: there is nothing to measure on")
    names = names_in(sequences) if sequences else None
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for precision in chosen:
        more = [*(overrides or []), f"extract.precision={precision}", f"decode.every={every}"]
        cases: list[Case] = []
        if root is not None:
            flow = load_flow_config(config, more)
            cases += [_davis_case(found, flow) for found in open_davis(root, "2016", split=split, sequences=names)]
            _measure(cases, flow.extract, precision, output, rows)
        if mot is not None:
            flow = load_flow_config(TRACKING_CONFIG, more)
            found = find_sequences(mot, names=() if root is not None else names or ())
            cases = [_mot_case(open_sequence(item.folder), flow, every) for item in found]
            _measure(cases, flow.extract, precision, output, rows)
    write_json_whole(output / "precision.json", {"every": every, "sequences": rows, "means": means(rows)})
    _show(rows, chosen)


def means(rows: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over the sequences by measure and precision."""
    found: dict[str, dict[str, list[float]]] = {}
    for by_precision in rows.values():
        for precision, values in by_precision.items():
            for name, value in values.items():
                found.setdefault(name, {}).setdefault(precision, []).append(value)
    return {name: {p: float(np.mean(v)) for p, v in by.items()} for name, by in found.items()}


def _measure(
    cases: Sequence[Case],
    extract: ExtractConfig,
    precision: str,
    output: Path,
    rows: dict[str, dict[str, dict[str, float]]],
) -> None:
    """Results of all cases in one precision, from their files where these are of the same settings."""
    extractor: Extractor | None = None
    for case in tqdm(cases, desc=f"bench precision, {precision}", unit="sequence"):
        path = output / "sequences" / f"{case.name}.{precision}.json"
        key = sha256(case.settings.encode()).hexdigest()[:16]
        values = _read(path, key)
        if values is None:
            extractor = extractor or Extractor(extract)
            values = case.measure(extractor)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json_whole(path, {"settings": key, "values": values})
        rows.setdefault(case.name, {})[precision] = values


def _read(path: Path, key: str) -> dict[str, float] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return cast("dict[str, float]", content["values"]) if content.get("settings") == key else None


def _davis_case(sequence: DavisSequence, flow: FlowConfig) -> Case:
    config = flow.only("cosegment", "propagate")

    def measure(extractor: Extractor) -> dict[str, float]:
        packets = stream(sequence.frames_dir, config, masks={0: sequence.first_mask()}, extractor=extractor)
        both, foreground = [], []
        last = len(sequence.frame_names) - 1
        for packet in packets:
            truth = sequence.annotation(sequence.frame_names[packet.index]) > 0
            if packet.parts is not None:
                foreground.append(region_similarity(packet.parts.index_mask > 0, truth))
            if packet.labels is not None and 0 < packet.index < last:
                ours = packet.labels.index_mask > 0
                both.append((region_similarity(ours, truth) + boundary_measure(ours, truth)) / 2)
        return {"J&F": 100 * float(np.mean(both)), "foreground J": 100 * float(np.mean(foreground))}

    return Case(sequence.name, f"{sequence.frames_dir} {config.model_dump_json()}", measure)


def _mot_case(opened: OpenedSequence, flow: FlowConfig, every: int) -> Case:
    video = opened.video
    changes: dict[str, object] = {"every": every, "image_frame_rate": float(video.frame_rate)}
    config = flow.only("track", decode=changes)

    def measure(extractor: Extractor) -> dict[str, float]:
        task = make_task(opened, "det", every)
        found, _ = to_detections(task.boxes, video.image_hw)
        detections = {frame * every: boxes for frame, boxes in found.items()}
        packets = stream(video.path, config, detections=detections, extractor=extractor)
        tracks = {p.index // every: [(t.track_id, t.xyxy) for t in p.tracks or ()] for p in packets}
        return {"HOTA": score(task.gt, from_tracks(tracks), task.num_frames).as_dict()["HOTA"]}

    return Case(opened.sequence.name, f"{video.path} {config.model_dump_json()}", measure)


def _show(rows: dict[str, dict[str, dict[str, float]]], precisions: Sequence[str]) -> None:
    first, *others = precisions
    averages = means(rows)
    table = Table(title=f"points; difference to {first}", title_justify="left")
    for name in ("", "measure", *precisions, *(f"{other} - {first}" for other in others)):
        table.add_column(name, justify="left" if name in ("", "measure") else "right")

    def add(name: str, measure: str, values: dict[str, float]) -> None:
        shown = [f"{values[p]:.1f}" if p in values else "" for p in precisions]
        shown += [f"{values[p] - values[first]:+.2f}" if {p, first} <= set(values) else "" for p in others]
        table.add_row(name, measure, *shown)

    for measure in (name for name in MEASURES if name in averages):
        for name, by_precision in rows.items():
            values = {p: found[measure] for p, found in by_precision.items() if measure in found}
            if values:
                add(name, measure, values)
        add("mean", measure, averages[measure])
    console = Console(soft_wrap=True)
    console.print(table)
    for other in others:
        for measure, change in _changes(averages, first, other):
            verdict = "within" if change >= -TOLERANCE else "a loss of more than"
            console.print(f"{measure}: {other} changes the mean by {change:+.2f}, {verdict} {TOLERANCE} points")


def _changes(averages: dict[str, dict[str, float]], first: str, other: str) -> Iterable[tuple[str, float]]:
    """By how much the mean of each measure changes."""
    for measure, values in averages.items():
        if first in values and other in values:
            yield measure, values[other] - values[first]
