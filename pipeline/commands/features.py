"""``features``: look at the features of a video, or export them.

What is drawn in a view is in :mod:`pipeline.commands.feature_views`.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from tqdm import tqdm

from pipeline.commands.feature_views import Painter, View, make_painter
from pipeline.core.errors import ConfigError, OutputError, TruncatedError
from pipeline.core.files import path_inside, write_bytes_whole
from pipeline.flow import FlowConfig, Stages, load_flow_config, make_stages, stream
from pipeline.formats.contact_sheet import EvenSample, encode_within
from pipeline.formats.feature_export import FeatureExporter
from stages.write.video import whole_video

_SHEET_PICTURE_PX = 640
_SHEET_MAX_BYTES = 50_000


class Save(StrEnum):
    """File format of exported features."""

    npz = "npz"
    zarr = "zarr"


def features(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A video file or a folder of images.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; gets one folder per input.")] = Path(
        "outputs/features"
    ),
    view: Annotated[View | None, typer.Option(help="Write a video of this.")] = None,
    save: Annotated[Save | None, typer.Option(help="Export the features, in fp16.")] = None,
    point: Annotated[
        str | None, typer.Option(metavar="X,Y", help="Pixel of the first frame, for --view similarity.")
    ] = None,
    facet: Annotated[
        list[str] | None, typer.Option(help="facet@layer[:norm], e.g. key@11; several are all exported.")
    ] = None,
    first_component: Annotated[
        int, typer.Option(min=1, help="First of the three PCA components shown; 2 leaves out the strongest.")
    ] = 1,
    config: Annotated[Path | None, typer.Option(help="YAML file, see configs/default.yaml.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="e.g. extract.short_side=476.")
    ] = None,
    start: Annotated[float | None, typer.Option(help="Seconds; where to begin.")] = None,
    end: Annotated[float | None, typer.Option(help="Seconds; where to stop.")] = None,
    every: Annotated[int | None, typer.Option(help="Take every N-th frame.")] = None,
    sheet: Annotated[
        int, typer.Option(min=0, max=12, help="Write this many pictures of the view side by side, as a JPEG, too.")
    ] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier files.")] = False,
) -> None:
    """Look at the features of a video (--view), or export them with the grid's geometry (--save)."""
    if view is None and save is None:
        raise ConfigError(f"nothing to do: give --view ({', '.join(View)}) or --save ({', '.join(Save)})")
    if sheet and view is None:
        raise ConfigError("--sheet shows a view: give --view too")
    given = {"decode.start_seconds": start, "decode.end_seconds": end, "decode.every": every}
    settings = [*(overrides or []), *(f"{key}={value}" for key, value in given.items() if value is not None)]
    settings += [f"extract.facets=[{', '.join(facet)}]"] if facet else []
    flow_config = _flow_config(config, settings, view, exported=save is not None)
    stages = make_stages(source, flow_config, keep_features=True)
    xy = _parse_point(point, view)
    folder = path_inside(output, source.resolve().name if source.is_dir() else source.stem)
    paths = _paths(folder, view, save, sheet)
    _refuse_existing(paths, overwrite=overwrite)
    paint = None if view is None else make_painter(view, stages, xy, first_component - 1)
    exporter = None if save is None else _exporter(folder, save, stages, overwrite=overwrite)
    video = None if view is None else folder / f"{view.value}.mp4"
    sample = EvenSample(sheet) if sheet else None
    _draw_and_export(stages, flow_config, video, paint, exporter, sample)
    if video is not None and sample is not None:
        _write_sheet(video.with_suffix(".jpg"), sample)
    console = Console(soft_wrap=True)
    for path in paths:
        console.print(f"wrote {path}", markup=False, highlight=False)
    if exporter is not None and exporter.clipped_values:
        console.print(f"warning: {exporter.clipped_values} values beyond fp16 became its largest")


def _flow_config(config: Path | None, settings: list[str], view: View | None, *, exported: bool) -> FlowConfig:
    """Decode and extract only, for parts also cosegment."""
    if view == View.norm and not any(text.startswith("extract.facets=") for text in settings) and config is None:
        # Outlier norms are a property of the residual stream; keys hide them.
        settings = [*settings, "extract.facets=[token@-1]"]
    flow = load_flow_config(config, settings)
    is_cls_exported = exported and "cls" not in flow.extract.model_fields_set
    extract = {"cls": "facet"} if is_cls_exported else {}
    if view == View.parts:
        return flow.only("cosegment", extract=extract)
    return flow.only("extract", extract=extract)


def _parse_point(point: str | None, view: View | None) -> tuple[float, float] | None:
    if view != View.similarity:
        return None
    try:
        x, y = (float(part) for part in (point or "").split(","))
    except ValueError as error:
        raise ConfigError(f"--view similarity needs --point X,Y in pixels, got {point!r}") from error
    return x, y


def _paths(folder: Path, view: View | None, save: Save | None, sheet: int) -> list[Path]:
    suffixes = [".mp4", ".jpg"] if sheet else [".mp4"]
    paths = [] if view is None else [folder / f"{view.value}{suffix}" for suffix in suffixes]
    return paths if save is None else [*paths, folder / f"features.{save.value}"]


def _refuse_existing(paths: list[Path], *, overwrite: bool) -> None:
    for path in paths:
        if path.exists() and not overwrite:
            raise OutputError(f"{path}: exists already; use --overwrite or another --output")


def _exporter(folder: Path, save: Save, stages: Stages, *, overwrite: bool) -> FeatureExporter:
    extract = stages.extract
    assert extract is not None  # keep_features
    return FeatureExporter(
        folder / f"features.{save.value}",
        save.value,
        overwrite=overwrite,
        backbone=extract.backbone.name,
        weights_sha256=extract.backbone.weights_sha256,
        facets=[str(spec) for spec in extract.facets],
        normalized=extract.config.normalize,
    )


def _draw_and_export(
    stages: Stages,
    config: FlowConfig,
    video: Path | None,
    paint: Painter | None,
    exporter: FeatureExporter | None,
    sample: EvenSample | None,
) -> None:
    """Run every packet through the flow; memory holds what waits in the queues and no more."""
    broken: TruncatedError | None = None
    drawn = nullcontext() if video is None else whole_video(video, config.write, stages.info.frame_rate)
    packets = stream(stages.info.path, config, keep_features=True, extractor=stages.extract)
    total = stages.decode.expected_frames()
    first_seconds: float | None = None
    with exporter or nullcontext(), drawn as pictures:
        try:
            for packet in tqdm(packets, total=total, unit="frame", file=sys.stderr, mininterval=0.5):
                first_seconds = packet.frame.pts_seconds if first_seconds is None else first_seconds
                if exporter is not None:
                    exporter.write(packet)
                if paint is not None and pictures is not None:
                    picture = paint(packet)
                    pictures.write(picture, packet.frame.pts_seconds - first_seconds)
                    if sample is not None:
                        sample.add(_small(picture))
        except TruncatedError as error:
            broken = error
    if broken is not None:
        raise broken


def _small(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A picture ``(H, W, 3)`` at the width it has in a sheet."""
    height, width = picture.shape[:2]
    scale = min(1.0, _SHEET_PICTURE_PX / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _write_sheet(path: Path, sample: EvenSample) -> None:
    """The chosen pictures side by side."""
    pictures = [picture for _, picture in sample.items()]
    write_bytes_whole(path, encode_within(np.hstack(pictures), _SHEET_MAX_BYTES * len(pictures))[0])
