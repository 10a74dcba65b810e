"""The parts of the page that come from ``run.json``: key figures, problems, parts, stages, settings, versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.assembly import FlowConfig
from pipeline.formats.run_folder import RunFolder
from pipeline.report.charts import swatch
from pipeline.report.markup import Markup, color_or, element, section, table, text
from pipeline.report.strips import Clock
from pipeline.run_record import stream_line

_MAX_LINES = 50


def header(run: RunFolder, clock: Clock, num_objects: int) -> Markup:
    """Name, status and key figures."""
    record = run.record
    height, width = run.image_hw
    frames, seconds = int(record.get("frames") or 0), _number(record.get("seconds"))
    figures = {
        "video": f"{width} x {height}, {float(run.frame_rate):.4g} fps",
        "frames": f"{frames} ({clock.duration:.1f} s)",
        "objects": str(num_objects),
        "run time": f"{seconds:.1f} s ({frames / seconds:.1f} fps)" if seconds else "unknown",
        "slowest stage": str(record.get("bottleneck") or "unknown"),
        "peak memory": f"{_number(record.get('peak_memory_bytes')) / 2**20:.0f} MiB",
    }
    items = "".join(
        element("div", element("dt", text(name)), element("dd", text(value))) for name, value in figures.items()
    )
    status = str(record.get("status"))
    badge = element("span", text(status), class_=f"status {_status_class(status)}")
    return element("header", element("h1", text(run.name), badge), element("dl", items, class_="figures"))


def _status_class(status: str) -> str:
    return "good" if status == "done" else "bad"


def problems(run: RunFolder) -> Markup:
    """What went wrong, gaps in the input, and warnings; a line that says so where there are none."""
    record, decode = run.record, run.report_of("decode")
    gaps = [gap for gap in decode.get("gaps") or () if isinstance(gap, Mapping)]
    num_gaps = int(decode.get("num_gaps") or len(gaps))
    lines = [f"problem: {record['problem']}"] if record.get("problem") else []
    lines += [_gap_line(gap) for gap in gaps[:_MAX_LINES]]
    if num_gaps > _MAX_LINES:
        lines.append(f"{num_gaps} gaps in all")
    if (line := stream_line(decode)) is not None:
        lines.append(line)
    lines += [_outage_line(outage) for outage in decode.get("outages") or () if isinstance(outage, Mapping)]
    lines += [f"warning: {line}" for line in (record.get("warnings") or ())[:_MAX_LINES]]
    if not lines:
        return section("Warnings and gaps", element("p", text("None: every frame was decoded and processed.")))
    items = "".join(element("li", text(line)) for line in lines)
    return section("Warnings and gaps", element("ul", items, class_="problems"))


def _gap_line(gap: Mapping[str, Any]) -> str:
    start, end = gap.get("start_seconds"), gap.get("end_seconds")
    when = "" if start is None else f" ({_number(start):.2f} s to {'the end' if end is None else f'{end:.2f} s'})"
    return f"gap: {gap.get('frames')} frames missing, from {gap.get('from')} to {gap.get('to')}{when}"


def _outage_line(outage: Mapping[str, Any]) -> str:
    length = outage.get("seconds")
    lasted = "to the end" if length is None else f"for {_number(length):.1f} s"
    start = _number(outage.get("start_seconds"))
    return (
        f"no connection after frame {outage.get('after_frame')} ({start:.2f} s) {lasted}: {outage.get('reason')}"
    )


def parts(run: RunFolder) -> Markup:
    """Parts with color, the object they belong to, mean area and life."""
    entries = [entry for entry in run.report_of("cosegment").get("parts") or () if isinstance(entry, Mapping)]
    if not entries:
        return ""
    owners = [entry for entry in run.report_of("propagate").get("parts") or () if isinstance(entry, Mapping)]
    owner_of = {str(entry.get("number")): entry for entry in owners}
    pixels = run.image_hw[0] * run.image_hw[1]
    rows = []
    for entry in entries:
        color, area = color_or(entry.get("color"), "#888888"), _number(entry.get("mean_area_px"))
        seen = f"{entry.get('first_frame')} to {entry.get('last_frame')}"
        size = f"{area:.0f} px ({area / pixels:.1%})"
        number = swatch(color) + text(entry.get("number"))
        owner = owner_of.get(str(entry.get("number")), {})
        of = "-" if owner.get("object") is None else f"{owner['object']} ({_number(owner.get('share')):.0%})"
        rows.append((number, text(of), text(size), text(entry.get("frames")), text(seen)))
    note = (
        "Parts found without labels; a part keeps its number and color through the video. It is of the object "
        "that covers half or more of its pixels."
    )
    return section("Parts", table(("part", "of object", "mean area", "frames", "seen in frames"), rows), note=note)


def stages(run: RunFolder) -> Markup:
    """What each stage did, with its busy time as a bar; the slowest one is marked."""
    entries = [entry for entry in run.record.get("stages") or () if isinstance(entry, Mapping)]
    if not entries:
        return ""
    longest = max((_number(entry.get("busy_seconds")) for entry in entries), default=0.0) or 1.0
    slowest = run.record.get("bottleneck")
    rows = []
    for entry in entries:
        busy = _number(entry.get("busy_seconds"))
        waiting = _number(entry.get("input_wait_seconds")) + _number(entry.get("output_wait_seconds"))
        name = text(entry.get("name"))
        if entry.get("name") == slowest:
            name = element("b", name) + element("span", text("bottleneck"), class_="status bad")
        bar = element("span", class_="busy", style=f"width:{100 * busy / longest:.1f}%")
        rate = entry.get("frames_per_busy_second")
        rows.append(
            (
                name,
                text(entry.get("items")),
                text("-" if rate is None else f"{_number(rate):.1f}"),
                element("span", bar, class_="busy-cell") + text(f"{busy:.2f} s"),
                text(f"{waiting:.2f} s"),
                text(entry.get("deepest_queue")),
            )
        )
    head = ("stage", "frames", "fps if it never waited", "busy", "waiting", "deepest queue")
    note = "All stages run side by side: the busiest one sets the speed."
    return section("Stages", table(head, rows), note=note)


def settings(run: RunFolder) -> Markup:
    """Settings that differ from the defaults."""
    default = dict(flat(FlowConfig().model_dump(mode="json")))
    rows = [
        (element("code", text(key)), text(value), text(default[key] if key in default else "no such setting now"))
        for key, value in flat(run.config)
        if key not in default or default[key] != value
    ]
    if not rows:
        return section("Settings", element("p", text("All settings are the defaults.")))
    return section(
        "Settings that differ from the defaults", table(("setting", "here", "default"), rows, class_="long")
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings with dotted keys.

    >>> list(flat({"a": {"b": 1}, "c": [2]}))
    [('a.b', 1), ('c', [2])]
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def versions(run: RunFolder) -> Markup:
    """Versions of the packages."""
    found = [f"{name} {version}" for name, version in run.versions.items()]
    return section("Versions", element("p", text(", ".join(found)))) if found else ""


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
