"""MOTS: the text files and 16-bit PNGs of MOTSChallenge.

Format: Voigtlaender et al., MOTS: Multi-Object Tracking and Segmentation, CVPR 2019
(https://www.vision.rwth-aachen.de/page/mots). A line is ``frame id class height width rle`` with frames from 1; an
id, and a pixel of the PNG, is ``class * 1000 + object``. Class 2 is pedestrian, the one that MOTSChallenge scores.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.core.files import path_inside, write_bytes_whole, write_text_whole
from pipeline.export.labeled_run import LabeledRun
from pipeline.formats.rle import compress_counts, mask_counts

CLASS_ID = 2
_INSTANCES_PER_CLASS = 1000


def write_mots(run: LabeledRun, folder: Path) -> None:
    """Write ``instances_txt/NAME.txt`` and ``instances/NAME/000001.png``, NAME being that of the run's folder.

    Raises:
        OutputError: The folder cannot be written.
    """
    height, width = run.run.image_hw
    name = run.run.folder.resolve().name
    lines = []
    for frame in run:
        values = np.zeros((height, width), np.uint16)
        for found in frame.objects:
            number = CLASS_ID * _INSTANCES_PER_CLASS + found.object_id
            values[found.mask] = number
            text = compress_counts(mask_counts(found.mask))
            lines.append(f"{frame.index + 1} {number} {CLASS_ID} {height} {width} {text}\n")
        write_bytes_whole(path_inside(folder, "instances", name, f"{frame.index + 1:06d}.png"), _png(values))
    write_text_whole(path_inside(folder, "instances_txt", f"{name}.txt"), "".join(lines))


def _png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    return buffer.getvalue()
