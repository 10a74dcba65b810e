"""Embedded descriptors as a picture and as a page to explore."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from pipeline.core.arrays import IntArray
from pipeline.core.colors import id_colors
from pipeline.core.files import write_text_whole
from pipeline.evaluation.track_plots import save_figure
from pipeline.images.image_sets import DescribedImage
from pipeline.local.embedding import Places
from pipeline.local.page import page, thumbnail
from pipeline.report.markup import element, text

Colors = npt.NDArray[np.uint8]
_LEGEND_ENTRIES = 14
_BACKGROUND_COLOR = (176, 180, 186)


@dataclass(frozen=True, slots=True)
class Coloring:
    """What colors the points of a view.

    Attributes:
        name: Such as ``part``.
        labels: int64 ``(N,)``, an index into ``names``.
        names: Of the labels.
        colors: uint8 ``(len(names), 3)``.
    """

    name: str
    labels: IntArray
    names: tuple[str, ...]
    colors: Colors


@dataclass(frozen=True, slots=True)
class View:
    """One embedding.

    Attributes:
        name: Of the feature, or of all layers together.
        places: float32 ``(N, 2)``.
        images: int64 ``(N,)``: the image of every point.
        cells: int64 ``(N,)``: its cell.
        colorings: At least one.
    """

    name: str
    places: Places
    images: IntArray
    cells: IntArray
    colorings: tuple[Coloring, ...]


def make_coloring(name: str, labels: IntArray, names: Sequence[str], *, gray: int | None = None) -> Coloring:
    """A coloring with well separated colors; the label ``gray`` (background) is gray."""
    colors = id_colors(len(names), first_hue=0.58, saturation=0.78, value=0.88)[1:]
    if gray is not None:
        colors[gray] = _BACKGROUND_COLOR
    return Coloring(name, labels, tuple(names), colors)


def draw_views(path: Path, views: Sequence[View]) -> None:
    """Every view with every coloring: a row per coloring name, a column per view."""
    names = list(dict.fromkeys(coloring.name for view in views for coloring in view.colorings))
    size = (3.9 * len(views) + 2.0, 3.9 * len(names) + 0.4)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panels = figure.subplots(len(names), len(views), squeeze=False)
    for line, name in zip(panels, names, strict=True):
        for axes, view in zip(line, views, strict=True):
            axes.set_axis_off()
            found = next((c for c in view.colorings if c.name == name), None)
            if found is None:
                continue
            axes.scatter(
                *view.places.T, s=_dot(len(view.places)), c=found.colors[found.labels] / 255, linewidths=0
            )
            axes.set_aspect("equal", adjustable="datalim")
            axes.invert_yaxis()  # as on the page, where y points down
            axes.set_title(f"{view.name}, by {name}", fontsize=10)
            last = found
        present = np.unique(np.concatenate([c.labels for v in views for c in v.colorings if c.name == name]))
        handles = [
            line[-1].scatter([], [], s=28, color=last.colors[label] / 255, label=last.names[label])
            for label in present[:_LEGEND_ENTRIES].tolist()
        ]
        more = f"first {_LEGEND_ENTRIES} of {len(present)}" if len(present) > _LEGEND_ENTRIES else None
        line[-1].legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, title=more)
    save_figure(figure, path)


def _dot(count: int) -> float:
    return float(np.clip(12_000 / max(count, 1), 2.0, 14.0))


def write_page(path: Path, title: str, note: str, views: Sequence[View], images: Sequence[DescribedImage]) -> None:
    """A page to explore the views: choose, drag, zoom, hide labels, see where a point is on its image."""
    data: dict[str, Any] = {
        "images": [{"name": i.name, "thumbnail": thumbnail(i.image), "grid": i.grid.grid_hw} for i in images],
        "views": [_view(view) for view in views],
    }
    choice = (
        element("label", "Features ", element("select", id="view")),
        element("label", "Color ", element("select", id="color")),
        element("button", "Whole picture", id="reset", type="button"),
    )
    tip = element("div", element("canvas", id="thumb"), element("div", id="words"), id="tip")
    body = (
        element("h1", text(title))
        + element("p", text(note), class_="note")
        + element("div", *choice, class_="bar")
        + element(
            "div",
            element("div", element("canvas", id="canvas"), tip, class_="stage"),
            element("aside", id="legend"),
            class_="plot",
        )
    )
    write_text_whole(path, page(title, body, script="scatter.js", data=data))


def _view(view: View) -> dict[str, Any]:
    places = np.round(view.places.astype(np.float64), 3)
    return {
        "name": view.name,
        "x": places[:, 0].tolist(),
        "y": places[:, 1].tolist(),
        "image": view.images.tolist(),
        "cell": view.cells.tolist(),
        "colorings": [
            {
                "name": coloring.name,
                "labels": coloring.labels.tolist(),
                "names": coloring.names,
                "colors": ["#" + bytes(color).hex() for color in coloring.colors.tolist()],
            }
            for coloring in view.colorings
        ],
    }
