"""``track-eval``: the tracker on labeled videos, its results on disk, scored and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from pipeline.commands.box_data import packets_of
from pipeline.core.options import names_in
from pipeline.evaluation.box_sequences import TRACKING_CONFIG, BoxSequence, load_sequences
from pipeline.evaluation.score_tables import COLUMNS, OFFICIAL_COLUMNS, score_table, write_scores
from pipeline.evaluation.track_plots import draw_timeline
from pipeline.evaluation.track_scoring import MotScores, rules_for, score_bdd_tables
from pipeline.evaluation.tracking_metrics import score
from pipeline.evaluation.tracking_preprocess import BDD_CLASSES, bdd_categories, mot_targets
from pipeline.flow import FlowConfig, load_flow_config
from pipeline.formats import bdd, mot
from pipeline.formats.boxes import BoxTable
from pipeline.report import write_index
from stages.extract import Extractor

BenchmarkChoice = Literal["auto", "plain", "MOT15", "MOT16", "MOT17", "MOT20"]


def track_eval(
    root: Annotated[Path, typer.Option(help="Folder of MOTChallenge sequences, or of BDD100K images and labels.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results, scores and timelines.")],
    data_format: Annotated[Literal["mot", "bdd"], typer.Option("--format", help="Format of the data.")] = "mot",
    split: Annotated[str | None, typer.Option(help="Only this split, for example val.")] = None,
    sequences: Annotated[str, typer.Option(help="Only these, comma separated.")] = "",
    detections: Annotated[
        str, typer.Option(help="det (the data's own), gt (ground truth), a file, or a folder of NAME.txt|json.")
    ] = "det",
    config: Annotated[Path, typer.Option(help="YAML file.")] = TRACKING_CONFIG,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A config value.")
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Take every N-th frame.")] = 1,
    classes: Annotated[str, typer.Option(help="Only these classes, comma separated.")] = "",
    benchmark: Annotated[
        BenchmarkChoice, typer.Option(help="Whose rules for classes (MOT); auto goes by the names.")
    ] = "auto",
) -> None:
    """Track labeled videos (MOTChallenge, BDD100K) and score the tracks: HOTA, CLEAR, IDF1, timelines."""
    console, wanted = Console(), names_in(classes)
    flow = load_flow_config(config, overrides or [])
    videos = load_sequences(data_format, root, split=split, names=names_in(sequences), classes=wanted)
    request = Request(detections, every, output, flow)
    # Everything that can be wrong with the labels is found before the first frame is decoded.
    boxes = [video.detections(detections) for video in videos]
    extractor = Extractor(flow.extract)
    results = []
    for video, (found, warnings) in zip(videos, boxes, strict=True):
        for line in (*video.warnings, *warnings):
            typer.echo(f"warning: {line}", err=True)
        results.append(_track(video, found, request, extractor))
    _report(console, results, request, wanted, benchmark)


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for."""

    detections: str
    every: int
    output: Path
    flow: FlowConfig


@dataclass(frozen=True, slots=True)
class Tracked:
    """A video and its tracks, frames as in the video."""

    video: BoxSequence
    tracks: BoxTable


def _track(video: BoxSequence, found: Any, request: Request, extractor: Extractor) -> Tracked:
    """Track one video and write its results and timeline."""
    rows: list[tuple[int, Any]] = []
    packets = packets_of(video, request.flow, extractor, stages=("track",), every=request.every, detections=found)
    for packet in packets:
        rows += [(packet.index, track) for track in packet.tracks or ()]
    table = BoxTable.make(
        [index for index, _ in rows],
        [track.track_id for _, track in rows],
        [track.xyxy for _, track in rows],
        scores=[track.score for _, track in rows],
        categories=[track.category for _, track in rows],
    )
    result = Tracked(video, table)
    _write(result, request)
    return result


def _write(result: Tracked, request: Request) -> None:
    video, folder = result.video, request.output / "results"
    if video.bdd is None:
        mot.write_table(folder / f"{video.name}.txt", result.tracks, kind="results")
    else:
        labels = bdd.BddVideo(video.name, video.num_frames, result.tracks, frame_names=video.bdd.frame_names)
        bdd.write_videos(folder / f"{video.name}.json", [labels])
    if len(video.targets):
        gt, tracks = (table.every(request.every) for table in (video.targets, result.tracks))
        frames = -(-video.num_frames // request.every)
        seconds = request.every / float(video.video.frame_rate)
        title = f"{video.name}: which track covers each object ({request.detections} boxes)"
        draw_timeline(request.output / f"timeline_{video.name}.png", title, gt, tracks, frames, seconds)


def _report(
    console: Console,
    results: Sequence[Tracked],
    request: Request,
    classes: Sequence[str],
    benchmark: BenchmarkChoice,
) -> None:
    """Score, print and write the scores."""
    console.print(f"results: {request.output / 'results'}", markup=False, highlight=False)
    without = [result.video.name for result in results if not len(result.video.targets)]
    if without:
        typer.echo(f"warning: no ground truth, so no scores, for: {', '.join(without)}", err=True)
    scored = [result for result in results if len(result.video.targets)]
    if not scored:
        return
    if scored[0].video.bdd is None:
        content = _score_mot(console, scored, request, classes, benchmark)
    else:
        content = _score_bdd(console, scored, request, classes)
    content["request"] = {"detections": request.detections, "every": request.every}
    content["config"] = request.flow.model_dump(mode="json")
    console.print(f"scores: {write_scores(request.output, content)}", markup=False, highlight=False)
    console.print(f"overview: {write_index(request.output)}", markup=False, highlight=False)


def _score_mot(
    console: Console,
    results: Sequence[Tracked],
    request: Request,
    classes: Sequence[str],
    benchmark: BenchmarkChoice,
) -> dict[str, Any]:
    rules, scores = {}, {}
    for result in results:
        name = result.video.name
        rules[name] = rules_for(name, benchmark, classes)
        gt, tracks = (
            result.video.truth.every(request.every),
            _without_categories(result.tracks.every(request.every)),
        )
        targets, kept = mot_targets(gt, tracks, benchmark=rules[name], classes=classes)
        scores[name] = score(targets, kept, -(-result.video.num_frames // request.every))
    content = MotScores(scores, rules).as_dict()
    rows = content["sequences"] | {"COMBINED": content["COMBINED"]}
    console.print(score_table(f"MOTChallenge, {request.detections} boxes", rows, COLUMNS))
    return content


def _without_categories(table: BoxTable) -> BoxTable:
    """As a results file holds them: MOTChallenge's rules tell a track's class by what it overlaps."""
    return replace(table, categories=("",) * len(table))


def _score_bdd(
    console: Console, results: Sequence[Tracked], request: Request, classes: Sequence[str]
) -> dict[str, Any]:
    wanted = tuple(classes) or BDD_CLASSES
    tables = {
        result.video.name: (
            result.video.truth.every(request.every),
            bdd_categories(result.tracks.every(request.every), wanted, source=f"tracks of '{result.video.name}'"),
        )
        for result in results
    }
    content = score_bdd_tables(tables, wanted).as_dict()
    console.print(score_table("BDD100K, official", content["official"], OFFICIAL_COLUMNS))
    console.print(score_table("BDD100K, as TrackEval scores it", content["trackeval"], COLUMNS))
    return content
