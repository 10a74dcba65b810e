"""``export``: a finished run in the formats of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from pipeline.core.options import numbers_in
from pipeline.export import ExportRequest, LabeledRun, export_run
from pipeline.formats.object_names import parse_names, read_names
from pipeline.formats.run_folder import RunFolder

Format = Literal["coco", "yolo-seg", "mots", "youtube-vis", "cvat-video", "mask-video", "parquet"]


def export(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of one run (it holds run.json).")],
    export_format: Annotated[Format, typer.Option("--format", help="What to write.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File or folder; by default beside OUT.")
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name",
            metavar="ID=NAME",
            help="The category of an object, e.g. 1=bear; the run's own names stay for the others.",
        ),
    ] = None,
    names_from: Annotated[
        Path | None,
        typer.Option(
            "--names", metavar="FILE", help="names.json, or the folder it is in; before the names in the run."
        ),
    ] = None,
    images: Annotated[
        bool, typer.Option("--images", help="Write the frames as JPEG too (coco, yolo-seg).")
    ] = False,
    source: Annotated[Path | None, typer.Option(help="Where the run's input is, if it was moved.")] = None,
    shape: Annotated[Literal["polygon", "mask"], typer.Option(help="Shapes for cvat-video.")] = "polygon",
    objects: Annotated[str, typer.Option(help="Only these objects in a mask-video, comma separated.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
) -> None:
    """Write the masks of a run as COCO, YOLO, MOTS, YouTube-VIS, CVAT, video or parquet."""
    saved = {} if names_from is None else read_names(names_from)
    run = LabeledRun(RunFolder(folder), {**saved, **parse_names(names or [])})
    object_ids = numbers_in("--objects", objects) if objects else ()
    request = ExportRequest(export_format, output, images, source, shape, object_ids, overwrite)
    path = export_run(run, request)
    Console(soft_wrap=True).print(f"wrote {path}", markup=False, highlight=False)
