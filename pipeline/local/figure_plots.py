"""Pictures in rows and columns with titles, which most figures are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.local.labeled_set import Image

DPI: Final = 110
_WIDTH_IN: Final = 11.0
_NAME_LENGTH: Final = 24


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture of a figure.

    Attributes:
        caption: What tells it from the others; may be empty.
        figure: The picture.
    """

    caption: str
    figure: Figure


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure of the page.

    Attributes:
        plots: At least one.
        numbers: What goes into the JSON file.
    """

    plots: list[Plot]
    numbers: dict[str, Any] = field(default_factory=dict)


def picture_grid(rows: Sequence[tuple[str, Sequence[Image]]], titles: Sequence[str]) -> Figure:
    """Named rows of pictures under the titles of their columns.

    Args:
        rows: A name, and uint8 ``(H, W, 3)`` of any size for every column; one size within a row looks best.
        titles: Of the columns.
    """
    width = _WIDTH_IN / len(titles)
    ratios = [max(p.shape[0] / p.shape[1] for p in pictures) for _, pictures in rows]
    size = (_WIDTH_IN + 0.3, sum(ratios) * width + 0.35)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)  # type: ignore[union-attr,call-arg]
    panels = figure.subplots(len(rows), len(titles), squeeze=False, gridspec_kw={"height_ratios": ratios})
    for number, (line, (name, pictures)) in enumerate(zip(panels, rows, strict=True)):
        for axes, picture, title in zip(line, pictures, titles, strict=True):
            axes.imshow(picture)
            without_ticks(axes)
            if number == 0:
                axes.set_title(title, fontsize=10)
        line[0].set_ylabel(shortened(name), fontsize=8)
    return figure


def without_ticks(axes: Axes) -> None:
    """Leave the picture alone."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def shortened(name: str) -> str:
    """A name that fits beside a picture.

    >>> shortened("a" * 40)
    'aaaaaaaaaaaaaaaaaaaaaaa…'
    """
    return name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "…"


def blocks(colors: Tensor, side_px: int = 480) -> Image:
    """Colors ``(3, h, w)`` in [0, 1] as uint8 ``(H, W, 3)``, every cell a block, which shows the resolution."""
    values = (colors.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    times = max(1, side_px // max(values.shape[:2]))
    return np.asarray(values.repeat(times, axis=0).repeat(times, axis=1), np.uint8)
