"""``bench tracking``: our tracker beside SORT, ByteTrack and BoT-SORT of the package ``trackers``.

All get the same detections of the same frames, at the full rate and at lower ones, and are scored as one class
against the whole ground truth. The package's trackers run with their defaults. BoT-SORT compensates camera motion
only when it is given frames; both ways are measured, because at a low frame rate the compensation harms it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import supervision as sv
import typer
from rich.console import Console

from pipeline.core.errors import ConfigError
from pipeline.core.files import list_images
from pipeline.core.options import names_in, numbers_in
from pipeline.core.records import Detections
from pipeline.evaluation.box_sequences import TRACKING_CONFIG
from pipeline.evaluation.score_tables import score_table, write_scores
from pipeline.evaluation.tracking_counts import TrackingScores, total
from pipeline.evaluation.tracking_metrics import score
from pipeline.evaluation.tracking_preprocess import mot_targets
from pipeline.flow import FlowConfig, load_flow_config, stream
from pipeline.formats.boxes import BoxTable, from_tracks, to_detections
from pipeline.formats.image_folder import load_image
from pipeline.formats.mot import read_table
from pipeline.formats.mot_folders import OpenedSequence, find_sequences, open_sequence
from stages.extract import Extractor

OURS = "ours"
MOTION = "BoT-SORT, camera motion"
_COLUMNS = ("HOTA", "DetA", "AssA", "MOTA", "IDF1", "FP", "FN", "IDSW", "Frag")


def bench_tracking(
    root: Annotated[Path, typer.Option(help="Folder of MOTChallenge sequences with ground truth.")],
    sequences: Annotated[str, typer.Option(help="Only these, comma separated.")] = "",
    detections: Annotated[Literal["det", "gt"], typer.Option(help="Boxes to track: det.txt or gt.txt.")] = "det",
    steps: Annotated[str, typer.Option("--every", help="Frame steps to measure at, comma separated.")] = "1,5",
    config: Annotated[Path, typer.Option(help="YAML file for our flow.")] = TRACKING_CONFIG,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A config value.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file (or folder) for the scores.")
    ] = None,
) -> None:
    """Our tracker beside SORT, ByteTrack and BoT-SORT (package trackers) on the same detections."""
    every = numbers_in("--every", steps)
    opened = [open_sequence(s.folder) for s in find_sequences(root, names=names_in(sequences))]
    others = other_trackers()
    flow = load_flow_config(config, overrides or [])
    console, content = Console(), {}
    for step in every:
        results = compare(opened, detections, step, others, flow)
        rows = {name: scores.as_dict() for name, scores in results.items()}
        console.print(score_table(f"every {step}. frame" if step > 1 else "every frame", rows, _COLUMNS))
        content[f"every_{step}"] = rows
    if output is not None:
        console.print(f"scores: {write_scores(output, content)}")


@dataclass(frozen=True, slots=True)
class Task:
    """One sequence at one rate, frames renumbered from 0.

    Attributes:
        opened: The sequence.
        step: Every how many frames.
        boxes: What to track.
        gt: All ground truth.
        num_frames: Frames at this rate.
    """

    opened: OpenedSequence
    step: int
    boxes: BoxTable
    gt: BoxTable
    num_frames: int


Method = Callable[[Task], BoxTable]


def compare(
    opened: list[OpenedSequence],
    detections: str,
    step: int,
    others: Mapping[str, Method],
    flow: FlowConfig,
) -> dict[str, TrackingScores]:
    """Scores over all sequences of every tracker, ours last."""
    extractor = Extractor(flow.extract)
    tasks = [make_task(sequence, detections, step) for sequence in opened]

    def ours(task: Task) -> BoxTable:
        return _ours(task, flow, extractor)

    methods: dict[str, Method] = {**others, OURS: ours}
    return {
        name: total(score(task.gt, method(task), task.num_frames) for task in tasks)
        for name, method in methods.items()
    }


def make_task(opened: OpenedSequence, detections: str, step: int) -> Task:
    """The boxes and the ground truth of a sequence at one rate; ``detections`` is ``det`` or ``gt``."""
    sequence, length = opened.sequence, opened.video.num_frames or 0
    targets, _ = mot_targets(read_table(sequence.gt_path, kind="gt", num_frames=length), BoxTable.empty())
    boxes = targets if detections == "gt" else read_table(sequence.det_path, kind="det", num_frames=length)
    return Task(opened, step, boxes.every(step), targets.every(step), -(-length // step))


def _ours(task: Task, flow: FlowConfig, extractor: Extractor) -> BoxTable:
    """Our tracks of one sequence, through the flow with everything off that tracking does not need."""
    video = task.opened.video
    rate = float(video.frame_rate)
    config = flow.only("track", decode={"every": task.step, "image_frame_rate": rate})
    found, _ = to_detections(task.boxes, video.image_hw)
    by_index: dict[int, Detections] = {frame * task.step: boxes for frame, boxes in found.items()}
    packets = stream(video.path, config, detections=by_index, extractor=extractor)
    tracks = {p.index // task.step: [(t.track_id, t.xyxy) for t in p.tracks or ()] for p in packets}
    return from_tracks(tracks)


def other_trackers() -> dict[str, Method]:
    """The package's trackers by name, each new for every sequence.

    Raises:
        ConfigError: The package is not installed.
    """
    try:
        import trackers
    except ImportError as error:
        raise ConfigError("the comparison needs the package trackers: pip install 'liftstream[bench]'") from error
    makers = {
        "SORT": trackers.SORTTracker,
        "ByteTrack": trackers.ByteTrackTracker,
        "BoT-SORT": trackers.BoTSORTTracker,
        MOTION: trackers.BoTSORTTracker,
    }
    return {name: _method(maker, with_frames=name == MOTION) for name, maker in makers.items()}


def _method(maker: Callable[[], Any], *, with_frames: bool) -> Method:
    def track(task: Task) -> BoxTable:
        return _run_package_tracker(maker(), task, with_frames=with_frames)

    return track


def _run_package_tracker(tracker: Any, task: Task, *, with_frames: bool) -> BoxTable:
    frames = _bgr_frames(task) if with_frames else iter([None] * task.num_frames)
    tracks = {}
    for index, (rows, image) in enumerate(zip(task.boxes.by_frame(task.num_frames), frames, strict=True)):
        found = sv.Detections(
            xyxy=task.boxes.xyxy[rows],
            confidence=task.boxes.scores[rows],
            class_id=np.zeros(len(rows), int),
        )
        result = tracker.update(found) if image is None else tracker.update(found, image)
        # The package marks boxes of tentative tracks with -1.
        shown = [(int(i), box) for i, box in zip(result.tracker_id, result.xyxy, strict=True) if i >= 0]
        tracks[index] = shown
    return from_tracks(tracks)


def _bgr_frames(task: Task) -> Iterator[Any]:
    for path in list_images(task.opened.video.path)[:: task.step]:
        yield load_image(path)[:, :, ::-1].copy()
