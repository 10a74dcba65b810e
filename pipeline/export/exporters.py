"""The table of export formats, and the call that writes one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.core.errors import ConfigError, OutputError
from pipeline.core.files import path_inside
from pipeline.export.coco import write_coco, write_youtube_vis
from pipeline.export.cvat import Shape, write_cvat
from pipeline.export.labeled_run import LabeledRun
from pipeline.export.mask_video import write_mask_video
from pipeline.export.mots import write_mots
from pipeline.export.parquet import write_parquet
from pipeline.export.source_frames import write_images
from pipeline.export.yolo import SPLIT, write_yolo


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to write where.

    Attributes:
        format: A key of :data:`FORMATS`.
        output: File or folder; None for a path beside the run's folder.
        images: Write the frames as JPEG too, where the format has a place for them.
        source: Where the run's input is now; by default where it was.
        shape: Polygons or masks, for CVAT.
        object_ids: Only these objects, for mask videos; all without any.
        overwrite: Replace a file that exists.
    """

    format: str
    output: Path | None = None
    images: bool = False
    source: Path | None = None
    shape: Shape = "polygon"
    object_ids: Sequence[int] = ()
    overwrite: bool = False


class ExportFormat(NamedTuple):
    """A row of the table of formats.

    Attributes:
        suffix: What is appended to the name of the run's folder.
        is_folder: Whether a folder is written.
        write: Writes it.
        images: Where frames go, relative to the folder, or to the folder of the file.
    """

    suffix: str
    is_folder: bool
    write: Callable[[LabeledRun, Path, ExportRequest], None]
    images: tuple[str, ...] = ()


FORMATS: dict[str, ExportFormat] = {
    "coco": ExportFormat("_coco.json", False, lambda run, path, _: write_coco(run, path), ("images",)),
    "yolo-seg": ExportFormat("_yolo", True, lambda run, path, _: write_yolo(run, path), ("images", SPLIT)),
    "mots": ExportFormat("_mots", True, lambda run, path, _: write_mots(run, path)),
    "youtube-vis": ExportFormat(
        "_ytvis.json", False, lambda run, path, _: write_youtube_vis(run, path), ("images",)
    ),
    "cvat-video": ExportFormat(
        "_cvat.xml", False, lambda run, path, request: write_cvat(run, path, shape=request.shape)
    ),
    "mask-video": ExportFormat(
        "_matte.mp4",
        False,
        lambda run, path, request: write_mask_video(
            run, path, source=request.source, object_ids=request.object_ids
        ),
    ),
    "parquet": ExportFormat("_objects.parquet", False, lambda run, path, _: write_parquet(run, path)),
}
"""The formats by name."""


def export_run(run: LabeledRun, request: ExportRequest) -> Path:
    """Write a run in the format of another tool.

    Returns:
        The file or folder.

    Raises:
        ConfigError: An unknown format, or an option that it does not have.
        OutputError: The output exists, cannot be written, or the run lacks something it needs.
    """
    entry = FORMATS.get(request.format)
    if entry is None:
        raise ConfigError(f"there is no format '{request.format}'; formats: {', '.join(FORMATS)}")
    if request.images and not entry.images:
        raise ConfigError(f"--images: {request.format} has no place for the frames")
    folder = run.run.folder.resolve()
    path = request.output or folder.parent / f"{folder.name}{entry.suffix}"
    if entry.is_folder and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(f"{path}: exists and is not empty; choose another --output")
    if not entry.is_folder and path.exists() and not request.overwrite:
        raise OutputError(f"{path}: exists; choose another --output or add --overwrite")
    entry.write(run, path, request)
    if request.images:
        inside = path if entry.is_folder else path.parent
        write_images(run, path_inside(inside, *entry.images), request.source)
    return path
