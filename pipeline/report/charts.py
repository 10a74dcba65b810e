"""Charts of a run as plain HTML and SVG, so that they print and need no script to be seen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.report.markup import Markup, element, text
from pipeline.report.strips import Clock, Moment, Strip, binned

MAX_STRIPS = 60
MAX_TRACKS = 100
_BINS = 400
_GAP_FRAMES = 2.5
"""Detections of a track further apart than this many frames are drawn as two bars."""


def confidence_strips(strips: list[Strip], clock: Clock) -> Markup:
    """One row per object: its confidence over time, with its worst moments as buttons."""
    shown = sorted(strips, key=lambda s: float(s.confidence.min()))[:MAX_STRIPS]
    rows = "".join(_strip_row(strip, clock) for strip in sorted(shown, key=lambda s: s.object_id))
    hidden = len(strips) - len(shown)
    more = element("p", text(f"{hidden} more objects with higher confidence"), class_="note") if hidden else ""
    return element("div", rows, class_="strips") + more


def _strip_row(strip: Strip, clock: Clock) -> Markup:
    bins = min(_BINS, max(1, round(clock.duration / clock.frame_seconds)))
    width = 1000 / bins
    worst = float(strip.confidence.min())
    bottom = 0.5 if worst >= 0.5 else 0.0
    bars = "".join(
        f'<rect x="{place * width:.2f}" y="{40 * (1 - value) / (1 - bottom):.2f}" width="{width + 0.2:.2f}" '
        f'height="{40 * (value - bottom) / (1 - bottom):.2f}"/>'
        for place, value in binned(strip, clock, bins).items()
    )
    chart = (
        f'<svg viewBox="0 0 1000 40" preserveAspectRatio="none" aria-hidden="true" fill="{strip.color}">'
        f'<line x1="0" x2="1000" y1="20" y2="20" class="half"/>{bars}</svg>'
    )
    marks = "".join(_mark(moment, clock) for moment in strip.worst)
    facts = f" mean {strip.confidence.mean():.2f}, worst {worst:.2f} (drawn from {bottom:g} to 1)"
    label = element(
        "div",
        swatch(strip.color),
        element("b", text(name_of(strip))),
        element("span", text(facts), class_="note"),
        class_="label",
    )
    return element("div", label, element("div", chart, marks, class_="chart", data_strip=strip.object_id))


def _mark(moment: Moment, clock: Clock) -> Markup:
    title = f"frame {moment.frame}, {moment.seconds:.2f} s, confidence {moment.confidence:.2f}"
    return element(
        "button",
        class_="mark jump",
        type="button",
        style=f"left:{100 * (moment.seconds + clock.frame_seconds / 2) / clock.duration:.3f}%",
        data_t=f"{moment.seconds:.4f}",
        title=title,
        aria_label=f"object {moment.object_id}: {title}",
    )


def time_line(strips: list[Strip], clock: Clock) -> Markup:
    """One row per track: bars where it was seen; longest first where there are too many rows."""
    shown = sorted(strips, key=lambda strip: -len(strip.frames))[:MAX_TRACKS]
    step = _typical_step(strips)
    rows = "".join(
        element(
            "div",
            element("span", swatch(strip.color), text(name_of(strip)), class_="label"),
            element("span", *(_bar(strip, run, clock) for run in _runs(strip.frames, step)), class_="line"),
            class_="track",
        )
        for strip in sorted(shown, key=lambda strip: (float(strip.seconds[0]), strip.object_id))
    )
    hidden = len(strips) - len(shown)
    more = element("p", text(f"{hidden} shorter tracks are not shown"), class_="note") if hidden else ""
    scale = element("div", element("span", text("0 s")), element("span", text(f"{clock.duration:.1f} s")))
    return element("div", rows, element("div", scale, class_="scale"), class_="tracks") + more


def _typical_step(strips: list[Strip]) -> float:
    steps = [float(np.median(np.diff(strip.frames))) for strip in strips if len(strip.frames) > 1]
    return min(steps, default=1.0)


def _runs(frames: npt.NDArray[np.int64], step: float) -> list[tuple[int, int]]:
    """First and last position of the stretches without a gap."""
    breaks = np.flatnonzero(np.diff(frames) > _GAP_FRAMES * step)
    starts = [0, *(breaks + 1).tolist()]
    ends = [*breaks.tolist(), len(frames) - 1]
    return list(zip(starts, ends, strict=True))


def _bar(strip: Strip, run: tuple[int, int], clock: Clock) -> Markup:
    start, end = float(strip.seconds[run[0]]), float(strip.seconds[run[1]]) + clock.frame_seconds
    left, width = 100 * start / clock.duration, 100 * (end - start) / clock.duration
    return element(
        "button",
        class_="bar jump",
        type="button",
        style=f"left:{left:.3f}%;width:{max(width, 0.3):.3f}%;background:{strip.color}",
        data_t=f"{start:.4f}",
        title=f"{name_of(strip)}: frames {strip.frames[run[0]]} to {strip.frames[run[1]]}",
    )


def swatch(color: str) -> Markup:
    """A small square of a color."""
    return element("i", class_="swatch", style=f"background:{color}")


def name_of(strip: Strip) -> str:
    """Id and category."""
    return f"#{strip.object_id} {strip.category}".strip()
