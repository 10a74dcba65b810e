"""The input's frames of a finished run, decoded again with the settings of the run."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from pipeline.core.config import load_config
from pipeline.core.errors import OutputError
from pipeline.core.files import path_inside, write_bytes_whole
from pipeline.core.records import Frame
from pipeline.export.labeled_run import LabeledRun
from stages.decode import DecodeConfig, Decoder, probe

_JPEG_QUALITY = 95


def source_frames(run: LabeledRun, source: Path | None = None) -> Iterator[Frame]:
    """The frames that have masks, in order.

    Args:
        run: The run.
        source: Where its input is now; by default where it was.

    Raises:
        OutputError: The input is not there, or is another one.
    """
    path = source or Path(str(run.run.record["input"].get("path")))
    if not path.exists():
        raise OutputError(f"{path}: the input of the run is not there; say where it is with --source")
    config = load_config(DecodeConfig, run.run.config.get("decode", {}), origin=f"{run.run.folder}: decode")
    info = probe(path, config)
    if info.image_hw != run.run.image_hw:
        raise OutputError(f"{path}: has frames of {info.image_hw}, but those of the run are {run.run.image_hw}")
    wanted = set(run.paths)
    for frame in Decoder(config, info)():
        if frame.index in wanted:
            yield frame


def write_images(run: LabeledRun, folder: Path, source: Path | None = None) -> int:
    """Write the frames as ``NAME.jpg``, named like the masks.

    Returns:
        The number of frames written.

    Raises:
        OutputError: The input is not there, or the folder cannot be written.
    """
    names = dict(zip(run.paths, run.frame_names(), strict=True))
    count = 0
    for frame in source_frames(run, source):
        buffer = io.BytesIO()
        Image.fromarray(frame.image).save(buffer, format="JPEG", quality=_JPEG_QUALITY)
        write_bytes_whole(path_inside(folder, f"{names[frame.index]}.jpg"), buffer.getvalue())
        count += 1
    return count
