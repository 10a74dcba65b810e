"""What patch retrieval found: JSON, table and plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipeline.evaluation.track_plots import save_figure
from pipeline.local.patch_retrieval import RetrievalCounts, RetrievalKey

Counts = Mapping[RetrievalKey, RetrievalCounts]

_SERIES: Final = (
    ("same_patch", "same patch", "C0", "patch_bound"),
    ("category", "same category", "C2", "category_bound"),
    ("supercategory", "same supercategory", "C1", "supercategory_bound"),
    ("background", "background", "0.55", None),
)
_UNITS: Final = {
    "shift": "shift in pixels", "rotate": "rotation in degrees", "scale": "scale",
    "blur": "blur, standard deviation in pixels", "noise": "noise, standard deviation",
}  # fmt: skip


def to_json(counts: Counts) -> list[dict[str, Any]]:
    """Every count as shares, ready for JSON."""
    return [
        {
            "feature": key.feature,
            "change": key.change,
            "source_image_excluded": key.excluded,
            "removed": key.removed,
            "queries": found.queries,
            **{name: None if value != value else round(value, 4) for name, value in found.shares().items()},
        }
        for key, found in counts.items()
    ]


def retrieval_table(title: str, counts: Counts, feature: str, removed: int) -> Table:
    """Shares of one feature, a row per change, with the upper bounds in parentheses."""
    table = Table(title=f"{title}, {feature}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("change", no_wrap=True)
    for heading in (
        "same patch",
        "overlap",
        "category",
        "super",
        "backgr.",
        "| others: category",
        "super",
        "backgr.",
    ):
        table.add_column(heading, justify="right")
    changes = dict.fromkeys(key.change for key in counts)
    for change in changes:
        with_own, others = (
            counts[RetrievalKey(feature, change, excluded, removed)].shares() for excluded in (False, True)
        )
        table.add_row(
            change,
            _bounded(with_own, "same_patch", "patch_bound"),
            f"{with_own['overlap']:.2f}",
            _bounded(with_own, "category", "category_bound"),
            _bounded(with_own, "supercategory", "supercategory_bound"),
            f"{with_own['background']:.3f}",
            _bounded(others, "category", "category_bound"),
            _bounded(others, "supercategory", "supercategory_bound"),
            f"{others['background']:.3f}",
        )
    return table


def _bounded(shares: Mapping[str, float], name: str, bound: str) -> str:
    text = f"{shares[name]:.3f}"
    return text if shares[bound] > 0.9995 else f"{text} ({shares[bound]:.2f})"


def draw_retrieval(path: Path, title: str, counts: Counts, features: Sequence[str], removed: int) -> None:
    """Shares against the amount of every kind of change; a row of panels per feature and gallery.

    Solid: what was found. Dotted: the upper bound. The two galleries are all images, and all but the query's own.
    """
    kinds = list(dict.fromkeys(key.change.split()[0] for key in counts))
    rows = [(feature, excluded) for feature in features for excluded in (False, True)]
    size = (1.2 + 2.9 * len(kinds), 0.9 + 2.4 * len(rows))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panels = figure.subplots(len(rows), len(kinds), squeeze=False, sharey=True)
    figure.suptitle(title)
    for line, (feature, excluded) in zip(panels, rows, strict=True):
        for axes, kind in zip(line, kinds, strict=True):
            _draw_kind(axes, counts, feature, kind, excluded, removed)
        gallery = "other images only" if excluded else "all images"
        line[0].set_ylabel(f"{feature}\n{gallery}\nshare of queries", fontsize=8)
    for axes, kind in zip(panels[-1], kinds, strict=True):
        axes.set_xlabel(_UNITS[kind], fontsize=9)
    for _, label, color, _ in _SERIES:
        panels[0][0].plot([], [], color=color, marker="o", markersize=3, label=label)
    panels[0][0].plot([], [], ":", color="black", label="upper bound")
    figure.legend(loc="outside lower center", ncols=5, fontsize=8)
    save_figure(figure, path)


def _draw_kind(axes: Axes, counts: Counts, feature: str, kind: str, excluded: bool, removed: int) -> None:
    keys = [
        key
        for key in counts
        if (key.feature, key.excluded, key.removed) == (feature, excluded, removed)
        and key.change.split()[0] == kind
    ]
    amounts = [float(key.change.split()[1]) for key in keys]
    for name, _, color, bound in _SERIES:
        if name == "same_patch" and excluded:
            continue
        axes.plot(amounts, [counts[key].shares()[name] for key in keys], color=color, marker="o", markersize=3)
        if bound is not None:
            axes.plot(amounts, [counts[key].shares()[bound] for key in keys], ":", color=color, linewidth=1.2)
    axes.set_ylim(-0.03, 1.05)
    axes.grid(alpha=0.3)
