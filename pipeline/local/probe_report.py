"""What a probe found: JSON, tables and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipeline.core.arrays import FloatArray
from pipeline.evaluation.track_plots import save_figure
from pipeline.local.heads import HeadKind
from pipeline.local.labeled_set import LabelClass
from pipeline.local.patches import Confusion
from pipeline.local.perturbations import PHOTOMETRIC_KINDS
from pipeline.local.probing import CLEAN, ProbeKey, ProbeResult
from stages.extract.high_variance import highest_variance

HEAD_NAMES: Final[dict[HeadKind, str]] = {"knn": "k-NN", "linear": "linear", "linear_bn": "linear, BN"}
_LINES: Final[dict[HeadKind, str]] = {"knn": "-", "linear": "--", "linear_bn": ":"}
_LISTED_CHANNELS: Final = 200
_MAX_COLORS: Final = 10
_AXES: Final = {
    "blur": "blur, standard deviation in pixels",
    "noise": "noise, standard deviation",
    "band": "band / Nyquist",
}


@dataclass(frozen=True, slots=True)
class ProbeRun:
    """One backbone with one tiling.

    Attributes:
        backbone: Its name.
        tiling: How images went through it.
        result: The scores.
    """

    backbone: str
    tiling: str
    result: ProbeResult

    @property
    def name(self) -> str:
        """For titles and legends."""
        return f"{self.backbone} ({self.tiling})"


def to_json(runs: Sequence[ProbeRun], classes: Sequence[LabelClass]) -> list[dict[str, Any]]:
    """Everything that was measured, ready for JSON."""
    return [
        {
            "backbone": run.backbone,
            "tiling": run.tiling,
            "train_patches": run.result.train_patches,
            "scores": [
                {
                    "feature": key.feature,
                    "head": key.head,
                    "removed": key.removed,
                    "images": key.change,
                    **summary(confusions, classes),
                }
                for key, confusions in run.result.confusions.items()
            ],
            "variance": {
                name: {
                    "sorted": [float(f"{v:.6g}") for v in np.sort(variance)[::-1]],
                    "highest": highest_variance(torch.from_numpy(variance), _LISTED_CHANNELS),
                }
                for name, variance in run.result.variances.items()
            },
        }
        for run in runs
    ]


def summary(confusions: Sequence[Confusion], classes: Sequence[LabelClass]) -> dict[str, Any]:
    """Mean scores over the trials, and those of every trial."""
    accuracies = [c.pixel_accuracy for c in confusions]
    ious = [c.mean_iou for c in confusions]
    by_class = np.array([c.iou for c in confusions])
    return {
        "pixel_accuracy": _rounded(np.mean(accuracies)),
        "mean_iou": _rounded(np.mean(ious)),
        "mean_iou_spread": _rounded(np.std(ious)),
        "trials": [
            {"pixel_accuracy": _rounded(a), "mean_iou": _rounded(i)} for a, i in zip(accuracies, ious, strict=True)
        ],
        "iou_by_class": {
            one.name: _rounded(values[~np.isnan(values)].mean()) if (~np.isnan(values)).any() else None
            for one, values in zip(classes, by_class.T, strict=True)
        },
    }


def _rounded(value: float | np.floating[Any]) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def score_table(run: ProbeRun) -> Table:
    """Mean IoU and pixel accuracy on unchanged images, a row per feature and number of removed channels."""
    scores, removed = _scores(run, "mean_iou"), sorted({key.removed for key in run.result.confusions})
    accuracy = _scores(run, "pixel_accuracy")
    heads = _heads(run)
    table = Table(title=f"{run.name}: mIoU / pixel accuracy", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("features", no_wrap=True)
    if len(removed) > 1:
        table.add_column("removed", justify="right")
    for head in heads:
        table.add_column(HEAD_NAMES[head], justify="right", no_wrap=True)
    for feature in _features(run):
        for count in removed:
            keys = [ProbeKey(feature, head, count, CLEAN) for head in heads]
            cells = [f"{scores[key]:.3f} / {accuracy[key]:.3f}" for key in keys]
            table.add_row(feature, *([str(count)] if len(removed) > 1 else []), *cells)
    return table


def class_table(run: ProbeRun, classes: Sequence[LabelClass]) -> Table:
    """IoU of every class on unchanged images, for the best head of every feature."""
    scores = _scores(run, "mean_iou")
    columns: dict[str, dict[str, float | None]] = {}
    for feature in _features(run):
        clean = [key for key in scores if key.feature == feature and key.change == CLEAN]
        best = max(clean, key=lambda key: np.nan_to_num(scores[key], nan=-1.0))
        name = f"{feature}, {HEAD_NAMES[best.head]}" + (f", -{best.removed}" if best.removed else "")
        columns[name] = summary(run.result.confusions[best], classes)["iou_by_class"]
    table = Table(title=f"{run.name}: IoU by class, best head", title_justify="left", box=SIMPLE_HEAD)
    by_class = len(columns) < len(classes)
    table.add_column("class" if by_class else "features", no_wrap=True)
    for name in columns if by_class else [one.name for one in classes]:
        table.add_column(name, justify="right")
    if by_class:
        for one in classes:
            table.add_row(one.name, *(_shown(column[one.name]) for column in columns.values()))
    else:
        for name, column in columns.items():
            table.add_row(name, *(_shown(column[one.name]) for one in classes))
    return table


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def robustness_table(run: ProbeRun) -> Table | None:
    """Mean IoU by perturbation of the test images, nothing removed; None without any."""
    scores, changes = _scores(run, "mean_iou"), _changes(run)
    if len(changes) < 2:
        return None
    table = Table(title=f"{run.name}: mIoU on changed images", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("images", no_wrap=True)
    first = min(key.removed for key in run.result.confusions)
    columns = [(feature, head) for feature in _features(run) for head in _heads(run)]
    for feature, head in columns:
        table.add_column(f"{feature}\n{HEAD_NAMES[head]}", justify="right")
    for change in changes:
        table.add_row(change, *(f"{scores[ProbeKey(f, h, first, change)]:.3f}" for f, h in columns))
    return table


def draw_scores(path: Path, runs: Sequence[ProbeRun]) -> None:
    """Bars of the mean IoU by feature and head, a panel per run."""
    widest = max(len(_features(run)) for run in runs)
    size = (max(6.0, 1.5 + 0.75 * widest), 3.1 * len(runs))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    panels = figure.subplots(len(runs), 1, squeeze=False)[:, 0]
    for axes, run in zip(panels, runs, strict=True):
        features, heads, scores = _features(run), _heads(run), _scores(run, "mean_iou")
        first = min(key.removed for key in run.result.confusions)
        width = 0.8 / len(heads)
        for place, head in enumerate(heads):
            values = [scores[ProbeKey(feature, head, first, CLEAN)] for feature in features]
            spread = [_spread(run, ProbeKey(feature, head, first, CLEAN)) for feature in features]
            at = np.arange(len(features)) + (place - (len(heads) - 1) / 2) * width
            axes.bar(at, values, width, yerr=spread if any(spread) else None, label=HEAD_NAMES[head], capsize=2)
        axes.set_xticks(range(len(features)), features, rotation=30, ha="right", fontsize=8)
        axes.set_ylabel("mIoU")
        axes.set_title(run.name, fontsize=10)
        axes.grid(axis="y", alpha=0.3)
        axes.set_ylim(0, 1.12 * max(0.01, *(scores[k] for k in scores if k.change == CLEAN)))
        axes.legend(fontsize=8, ncols=len(heads), loc="upper left")
    save_figure(figure, path)


def draw_variance(path: Path, runs: Sequence[ProbeRun]) -> None:
    """The variance of channels, largest first, and the mean IoU against how many of them are removed."""
    removed = sorted({key.removed for run in runs for key in run.result.confusions})
    figure = Figure(figsize=(11 if len(removed) > 1 else 6, 4.4), dpi=120, layout="constrained")
    panels = figure.subplots(1, 2 if len(removed) > 1 else 1, squeeze=False)[0]
    colors = _colors(runs)
    draw_spectra(
        panels[0],
        {
            feature if len(runs) == 1 else f"{run.name}, {feature}": (variance, colors[run.name, feature])
            for run in runs
            for feature, variance in run.result.variances.items()
        },
    )
    panels[0].set_ylabel("variance over the training patches")
    if len(removed) > 1:
        _draw_removed(panels[1], runs, removed, colors)
    save_figure(figure, path)


def draw_spectra(axes: Axes, spectra: Mapping[str, tuple[FloatArray, Any]]) -> None:
    """The variances of channels ``(C,)``, largest first, with a color each, by label."""
    for label, (variance, color) in spectra.items():
        axes.plot(range(1, len(variance) + 1), np.sort(variance)[::-1], color=color, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("channels, most variable first")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _draw_removed(
    axes: Axes, runs: Sequence[ProbeRun], removed: Sequence[int], colors: Mapping[tuple[str, str], Any]
) -> None:
    for run in runs:
        scores = _scores(run, "mean_iou")
        for feature in _features(run):
            for head in _heads(run):
                values = [scores[ProbeKey(feature, head, count, CLEAN)] for count in removed]
                axes.plot(removed, values, _LINES[head], marker="o", markersize=3, color=colors[run.name, feature])
    for head in _heads(runs[0]):
        axes.plot([], [], _LINES[head], color="black", label=HEAD_NAMES[head])
    axes.set_xlabel("removed channels of highest variance")
    axes.set_ylabel("mIoU")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def draw_robustness(path: Path, runs: Sequence[ProbeRun]) -> None:
    """The mean IoU against the amount of every kind of change, the clean images at the left."""
    kinds = [kind for kind in PHOTOMETRIC_KINDS if any(c.split()[0] == kind for c in _changes(runs[0]))]
    figure = Figure(figsize=(0.8 + 4.0 * len(kinds), 4.2), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    colors = _colors(runs)
    for axes, kind in zip(panels, kinds, strict=True):
        changes = [c for c in _changes(runs[0]) if c.split()[0] == kind]
        amounts = [float(c.split()[1]) for c in changes]
        for run in runs:
            scores = _scores(run, "mean_iou")
            first = min(key.removed for key in run.result.confusions)
            for feature in _features(run):
                for head in _heads(run):
                    values = [scores[ProbeKey(feature, head, first, c)] for c in [CLEAN, *changes]]
                    color = colors[run.name, feature]
                    start = 0.0 if kind != "band" else amounts[0] - 0.1
                    axes.plot([start, *amounts], values, _LINES[head], marker="o", markersize=3, color=color)
        axes.set_xlabel(_AXES[kind] + (" (first: clean)" if kind == "band" else ""))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("mIoU")
    for run in runs:
        for feature in _features(run):
            label = feature if len(runs) == 1 else f"{run.name}, {feature}"
            panels[0].plot([], [], color=colors[run.name, feature], label=label)
    for head in _heads(runs[0]):
        panels[0].plot([], [], _LINES[head], color="black", label=HEAD_NAMES[head])
    figure.legend(loc="outside lower center", fontsize=8, ncols=4)
    save_figure(figure, path)


def _scores(run: ProbeRun, what: str) -> dict[ProbeKey, float]:
    return {
        key: float(np.mean([getattr(one, what) for one in found])) for key, found in run.result.confusions.items()
    }


def _spread(run: ProbeRun, key: ProbeKey) -> float:
    return float(np.std([one.mean_iou for one in run.result.confusions[key]]))


def _features(run: ProbeRun) -> list[str]:
    return list(dict.fromkeys(key.feature for key in run.result.confusions))


def _heads(run: ProbeRun) -> list[HeadKind]:
    return list(dict.fromkeys(key.head for key in run.result.confusions))


def _changes(run: ProbeRun) -> list[str]:
    return list(dict.fromkeys(key.change for key in run.result.confusions))


def _colors(runs: Sequence[ProbeRun]) -> dict[tuple[str, str], Any]:
    """A color per run and feature."""
    names = [(run.name, feature) for run in runs for feature in _features(run)]
    palette = matplotlib.colormaps["tab10" if len(names) <= _MAX_COLORS else "turbo"]
    scale = _MAX_COLORS if len(names) <= _MAX_COLORS else max(1, len(names) - 1)
    return {
        name: palette(place / scale if len(names) > _MAX_COLORS else place) for place, name in enumerate(names)
    }
