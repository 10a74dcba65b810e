"""Plots of tracking and retrieval: which track covers each identity over time, and accuracy against the gap."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.core.files import write_bytes_whole, write_text_whole
from pipeline.evaluation.retrieval import GapCounts
from pipeline.evaluation.tracking_metrics import pair
from pipeline.evaluation.tracking_preprocess import match_at_half
from pipeline.formats.boxes import BoxTable

_ROW_INCHES = 0.32
_MAX_ROWS = 60
"""Rows of a timeline; of more identities the longest are drawn."""


def timeline_matches(gt: BoxTable, tracks: BoxTable, num_frames: int) -> npt.NDArray[np.int64]:
    """Which track each identity was found by: ``(identities, num_frames)``.

    Matched frame by frame at IoU 0.5, every frame on its own. Rows are in the order of ``np.unique(gt.ids)``.

    Returns:
        The track's id; 0 where the object is there and was missed, -1 where it is not there.

    >>> boxes = BoxTable.make([0, 2], [5, 5], [[0, 0, 4, 4]] * 2)
    >>> timeline_matches(boxes, BoxTable.make([0], [9], [[0, 0, 4, 4]]), 3).tolist()
    [[9, -1, 0]]
    """
    pairing = pair(gt, tracks, num_frames)
    track_names = np.unique(tracks.ids)
    found = np.full((pairing.num_gt_ids, len(pairing.gt_ids)), -1, np.int64)
    by_frame = zip(pairing.gt_ids, pairing.track_ids, pairing.similarity, strict=True)
    for frame, (gt_ids, track_ids, similarity) in enumerate(by_frame):
        found[gt_ids, frame] = 0
        rows, columns = match_at_half(similarity)
        found[gt_ids[rows], frame] = track_names[track_ids[columns]]
    return found


def draw_timeline(path: Path, title: str, gt: BoxTable, tracks: BoxTable, num_frames: int, seconds: float) -> None:
    """One row per identity: the track that covers it in its color, gray where it was missed, a line at a switch.

    Args:
        path: The PNG.
        title: Above the plot.
        gt: Targets, frames from 0.
        tracks: Results, frames from 0.
        num_frames: Frames of the sequence.
        seconds: Time between two frames.
    """
    found, names = timeline_matches(gt, tracks, num_frames), np.unique(gt.ids)
    longest = np.sort(np.argsort(-(found >= 0).sum(axis=1), kind="stable")[:_MAX_ROWS])
    found, names = found[longest], names[longest]
    colors = matplotlib.colormaps["tab20"]
    pixels = np.ones((*found.shape, 3))
    pixels[found == 0] = (0.82, 0.82, 0.82)
    for track in np.unique(found[found > 0]):
        pixels[found == track] = colors(int(track - 1) % 20)[:3]
    figure = Figure(figsize=(10.0, 1.4 + _ROW_INCHES * max(len(names), 1)), dpi=120, layout="constrained")
    axes: Axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    extent = (0.0, num_frames * seconds, len(names) - 0.5, -0.5)
    axes.imshow(pixels, aspect="auto", interpolation="nearest", extent=extent)
    for row, runs in enumerate(found):
        for start, track, switched in _runs(runs):
            x = start * seconds
            if switched:
                axes.plot([x, x], [row - 0.5, row + 0.5], color="black", linewidth=2)
            axes.text(x + 0.3 * seconds, row, str(track), va="center", fontsize=7, color="black", clip_on=True)
    axes.set_yticks(range(len(names)), [str(name) for name in names])
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", axis="y", color="white", linewidth=3)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("seconds")
    axes.set_ylabel("ground-truth identity")
    save_figure(figure, path)


def _runs(found: npt.NDArray[np.int64]) -> list[tuple[int, int, bool]]:
    """Where a track takes an identity over: (first frame, track, whether another track had it before)."""
    runs, last = [], 0
    for frame, track in enumerate(found.tolist()):
        if track > 0 and track != last:
            runs.append((frame, track, last > 0))
            last = track
    return runs


def draw_gaps(path: Path, title: str, curves: Mapping[str, Mapping[int, GapCounts]], seconds: float) -> None:
    """Instance and category accuracy against the gap, one line per kind of features.

    Args:
        path: The PNG.
        title: Above the plots.
        curves: Counts by gap in frames, by name.
        seconds: Time between two frames.
    """
    figure = Figure(figsize=(10, 4.2), dpi=120, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    figure.suptitle(title)
    for axes, kind in zip(panels, ("instance", "category"), strict=True):
        for name, counts in curves.items():
            gaps = sorted(counts)
            axes.plot(gaps, [getattr(counts[gap], kind) for gap in gaps], marker="o", markersize=4, label=name)
        axes.set_title(f"{kind} accuracy", fontsize=10)
        axes.set_xlabel("gap in frames")
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
        above = axes.secondary_xaxis(
            "top", functions=(lambda frames: frames * seconds, lambda time: time / seconds)
        )
        above.set_xlabel("seconds", fontsize=8)
    panels[0].legend(fontsize=8)
    save_figure(figure, path)


def write_gaps(path: Path, curves: Mapping[str, Mapping[int, GapCounts]], seconds: float) -> None:
    """The curves as CSV, one row per kind of features and gap."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        ["features", "gap_frames", "gap_seconds", "queries", "answerable", "instance", "instance_all", "category"]
    )
    for name, counts in curves.items():
        for gap, one in sorted(counts.items()):
            ratios = [f"{value:.4f}" for value in (one.instance, one.instance_all, one.category)]
            table.writerow([name, gap, f"{gap * seconds:.4f}", one.queries, one.answerable, *ratios])
    write_text_whole(path, text.getvalue())


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]
    write_bytes_whole(path, buffer.getvalue())
