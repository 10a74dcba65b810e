"""What a run says about itself: ``run.json`` and the summary table."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from pipeline.core.records import VideoInfo
from pipeline.core.runner import StageStatistics

_PACKAGES = ("liftstream", "torch", "timm", "av", "numpy", "faiss-cpu", "opencv-python-headless", "supervision")


def peak_memory_bytes() -> int:
    """Most resident memory this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe_input(info: VideoInfo) -> dict[str, Any]:
    """An input's facts as JSON values."""
    return {
        "path": str(info.path),
        "height": info.height,
        "width": info.width,
        "frame_rate": f"{info.frame_rate.numerator}/{info.frame_rate.denominator}",
        "num_frames": info.num_frames,
        "time_base": f"{info.time_base.numerator}/{info.time_base.denominator}",
    }


def describe_statistics(statistics: Sequence[StageStatistics]) -> list[dict[str, Any]]:
    """The stages' statistics as JSON values, with frames a second of busy time."""
    return [{**asdict(stage), "frames_per_busy_second": frames_per_second(stage)} for stage in statistics]


def frames_per_second(stage: StageStatistics) -> float | None:
    """Frames a second the stage would do if it never waited."""
    return stage.items / stage.busy_seconds if stage.busy_seconds > 0 else None


def summary_table(title: str, statistics: Sequence[StageStatistics], bottleneck: str | None) -> Table:
    """The stages of a run as a table, the bottleneck marked."""
    table = Table(title=title, title_justify="left")
    table.add_column("stage")
    for name in ("frames", "fps", "busy s", "waiting s", "deepest queue"):
        table.add_column(name, justify="right")
    for stage in statistics:
        rate = frames_per_second(stage)
        waiting = stage.input_wait_seconds + stage.output_wait_seconds
        mark = " (bottleneck)" if stage.name == bottleneck else ""
        table.add_row(
            stage.name + mark,
            str(stage.items),
            "-" if rate is None else f"{rate:.1f}",
            f"{stage.busy_seconds:.2f}",
            f"{waiting:.2f}",
            str(stage.deepest_queue),
        )
    return table
