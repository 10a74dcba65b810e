"""``bench gallery``: a contact sheet of the flow's pictures, one row per video, to be looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from tqdm import tqdm

from pipeline.core.errors import ConfigError
from pipeline.core.files import write_bytes_whole
from pipeline.flow import FlowConfig, load_flow_config, stream
from pipeline.formats.contact_sheet import EvenSample, encode_within
from stages.annotate.drawing import caption, fit_panel
from stages.extract import Extractor

Image = npt.NDArray[np.uint8]

_SUFFIXES = (".jpg", ".jpeg")


def bench_gallery(
    videos: Annotated[list[Path], typer.Argument(help="Videos or folders of images, one row each.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="JPEG file for the sheet.")],
    columns: Annotated[int, typer.Option(min=1, max=12, help="Frames of each video.")] = 5,
    width_px: Annotated[int, typer.Option(min=64, max=1024, help="Width of a picture in the sheet.")] = 320,
    max_kb: Annotated[int, typer.Option(min=20, help="Largest file; the JPEG quality follows from it.")] = 400,
    config: Annotated[Path | None, typer.Option(help="YAML file for the flow.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A config value.")
    ] = None,
) -> None:
    """A contact sheet of the annotated pictures of several videos."""
    if output.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"{output}: the sheet is a JPEG file; name it .jpg")
    flow = load_flow_config(config, overrides or [])
    extractor = Extractor(flow.extract)
    size_hw = (width_px * 9 // 16, width_px)
    rows = [sheet_row(video, flow, extractor, columns, size_hw) for video in videos]
    content, quality = encode_sheet(np.vstack(rows), 1000 * max_kb)
    write_bytes_whole(output, content)
    typer.echo(f"{output}: {len(rows)} videos, {len(content) / 1000:.0f} kB at JPEG quality {quality}")


def sheet_row(
    video: Path, flow: FlowConfig, extractor: Extractor, columns: int, size_hw: tuple[int, int]
) -> Image:
    """Annotated frames of one video side by side, spread evenly; black where it has fewer frames.

    Args:
        video: A file or a folder of images.
        flow: The flow; its results are not written.
        extractor: Shared between videos.
        columns: Frames.
        size_hw: Of each picture, in pixels.

    Returns:
        uint8 ``(h, columns * w, 3)`` RGB.
    """
    chosen = EvenSample(columns)
    settings = flow.only("cosegment", "propagate", "track", "annotate")
    for packet in tqdm(stream(video, settings, extractor=extractor), desc=video.stem, unit="frame"):
        assert packet.annotated is not None
        chosen.add(fit_panel(packet.annotated, size_hw))
    tiles = []
    for place, picture in chosen.items():
        caption(picture, f"{video.stem} {place}")
        tiles.append(picture)
    blank = np.zeros((*size_hw, 3), np.uint8)
    return np.hstack(tiles + [blank] * (columns - len(tiles)))


def encode_sheet(image: Image, max_bytes: int) -> tuple[bytes, int]:
    """:func:`encode_within`, with what to change where the sheet does not fit.

    Raises:
        ConfigError: It does not fit at the lowest quality tried.
    """
    try:
        return encode_within(image, max_bytes)
    except ConfigError as error:
        raise ConfigError(f"{error}: raise --max-kb, or lower --width-px or --columns") from error
