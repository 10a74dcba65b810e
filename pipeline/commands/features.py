"""``features``: look at the features of a video, or export them.

What is drawn in a view is in :mod:`pipeline.commands.feature_views`.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from tqdm import tqdm

from pipeline.commands.feature_views import Painter, View, make_painter
from pipeline.core.errors import ConfigError, OutputError, TruncatedError
from pipeline.core.files import path_inside
from pipeline.flow import FlowConfig, Stages, load_flow_config, make_stages, stream
from pipeline.formats.feature_export import FeatureExporter
from stages.write.video import whole_video


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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier files.")] = False,
) -> None:
    """Look at the features of a video (--view), or export them with the grid's geometry (--save)."""
    if view is None and save is None:
        raise ConfigError(f"nothing to do: give --view ({', '.join(View)}) or --save ({', '.join(Save)})")
    given = {"decode.start_seconds": start, "decode.end_seconds": end, "decode.every": every}
    settings = [*(overrides or []), *(f"{key}={value}" for key, value in given.items() if value is not None)]
    settings += [f"extract.facets=[{', '.join(facet)}]"] if facet else []
    flow_config = _flow_config(config, settings, view, exported=save is not None)
    stages = make_stages(source, flow_config, keep_features=True)
    xy = _parse_point(point, view)
    folder = path_inside(output, source.resolve().name if source.is_dir() else source.stem)
    _refuse_existing(folder, view, save, overwrite=overwrite)
    paint = None if view is None else make_painter(view, stages, xy, first_component - 1)
    exporter = None if save is None else _exporter(folder, save, stages, overwrite=overwrite)
    video = None if view is None else folder / f"{view.value}.mp4"
    _draw_and_export(stages, flow_config, video, paint, exporter)
    console = Console(soft_wrap=True)
    for path in _paths(folder, view, save):
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


def _paths(folder: Path, view: View | None, save: Save | None) -> list[Path]:
    paths = [] if view is None else [folder / f"{view.value}.mp4"]
    return paths if save is None else [*paths, folder / f"features.{save.value}"]


def _refuse_existing(folder: Path, view: View | None, save: Save | None, *, overwrite: bool) -> None:
    for path in _paths(folder, view, save):
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
    stages: Stages, config: FlowConfig, video: Path | None, paint: Painter | None, exporter: FeatureExporter | None
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
                    pictures.write(paint(packet), packet.frame.pts_seconds - first_seconds)
        except TruncatedError as error:
            broken = error
    if broken is not None:
        raise broken
