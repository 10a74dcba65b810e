"""A small finished run as a folder on disk, made without running the flow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.assembly import FlowConfig
from pipeline.formats.palette import write_indexed_png
from pipeline.formats.run_folder import OBJECT_COLUMNS
from tests.videos import write_video

SIZE = (48, 64)
COUNT = 10
RATE = 25


def index_mask(frame: int) -> npt.NDArray[np.uint8]:
    """Object 1 moves right and is there in every frame; object 2 has two pieces and a hole, in frames 2 to 6."""
    mask = np.zeros(SIZE, np.uint8)
    if 2 <= frame <= 6:
        mask[5:20, 30:50] = 2
        mask[10:13, 36:42] = 0
        mask[30:36, 50 + frame : 60] = 2
    mask[20:40, 3 + 2 * frame : 18 + 2 * frame] = 1
    return mask


def part_mask(frame: int) -> npt.NDArray[np.uint8]:
    """Two parts: the upper and the lower half of what is there."""
    parts = (index_mask(frame) > 0).astype(np.uint8)
    parts[24:] *= 2
    return parts


def confidence(frame: int, object_id: int) -> float:
    """Object 1 is worst in frame 7, object 2 in frame 4."""
    worst = {1: 7, 2: 4}[object_id]
    return round(max(0.2, min(1.0, 0.3 + 0.2 * abs(frame - worst))), 4)


def object_line(frame: int, object_id: int) -> str:
    """A line of objects.csv, worked out pixel by pixel."""
    rows, columns = np.nonzero(index_mask(frame) == object_id)
    start = f"{frame},{frame / RATE:.6f},{object_id},{len(rows)}"
    if not len(rows):
        return f"{start},,,,,,,{confidence(frame, object_id):.4f}"
    box = f"{columns.min()},{rows.min()},{columns.max() + 1},{rows.max() + 1}"
    return f"{start},{box},{columns.mean() + 0.5:.2f},{rows.mean() + 0.5:.2f},{confidence(frame, object_id):.4f}"


def picture(frame: int) -> npt.NDArray[np.uint8]:
    """A gray frame with the objects in color."""
    image = np.full((*SIZE, 3), 70 + 10 * frame, np.uint8)
    image[index_mask(frame) == 1] = (220, 60, 40)
    image[index_mask(frame) == 2] = (40, 80, 220)
    return image


def make_run(folder: Path, *, name: str = "square.mp4", count: int = COUNT, **changes: Any) -> Path:
    """Write the folder of a finished run; ``changes`` replace entries of ``run.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, tracks = [",".join(OBJECT_COLUMNS)], []
    for frame in range(count):
        write_indexed_png(folder / "masks" / f"{frame:05d}.png", index_mask(frame))
        write_indexed_png(folder / "parts" / f"{frame:05d}.png", part_mask(frame))
        for object_id in (1, 2):
            if object_id == 1 or frame >= 2:
                lines.append(object_line(frame, object_id))
            if (index_mask(frame) == object_id).any():
                tracks.append(
                    f"{frame + 1},{object_id},4.00,21.00,15.00,20.00,{confidence(frame, object_id)},-1,-1,-1"
                )
    (folder / "objects.csv").write_text("\n".join(lines) + "\n")
    (folder / "tracks.txt").write_text("\n".join(tracks) + "\n")
    images = [picture(frame) for frame in range(count)]
    write_video(folder / "annotated.mp4", images, options={"crf": "10", "g": "4", "bf": "0"})
    record = {
        "producer": "liftstream",
        "status": "done",
        "problem": None,
        "input": {
            "path": str(folder.parent / name),
            "height": SIZE[0],
            "width": SIZE[1],
            "frame_rate": f"{RATE}/1",
            "num_frames": count,
            "time_base": "1/12800",
        },
        "frames": count,
        "seconds": 4.5,
        "peak_memory_bytes": 300 << 20,
        "bottleneck": "extract",
        "stages": [
            {"name": stage, "items": count, "busy_seconds": busy, "input_wait_seconds": 0.1,
             "output_wait_seconds": 0.2, "deepest_queue": 2, "frames_per_busy_second": count / busy}
            for stage, busy in (("decode", 0.5), ("extract", 4.0), ("write", 1.0))
        ],
        "reports": {
            "decode": {"num_gaps": 0, "gaps": []},
            "cosegment": {
                "parts": [
                    {"number": 1, "color": "#f2a45c", "mean_area_px": 150.0, "frames": 10, "first_frame": 0,
                     "last_frame": 9},
                    {"number": 2, "color": "#785cf2", "mean_area_px": 240.0, "frames": 8, "first_frame": 2,
                     "last_frame": 9},
                ]
            },
        },
        "warnings": [],
        "identity": {
            "input": {"name": name, "bytes": 1234},
            "config": FlowConfig().model_dump(mode="json"),
            "versions": {"python": "3.11.7", "torch": "2.13.0"},
        },
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps({**record, **changes}))
    return folder
