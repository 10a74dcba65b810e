"""``bench lift``: DAVIS J&F and cost of raw, bilinear and lifted features and of other ways to more resolution."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from pipeline.core.errors import ConfigError
from pipeline.core.files import write_bytes_whole
from pipeline.core.grid import PatchGrid
from pipeline.core.records import Features, Frame, Packet
from pipeline.evaluation.davis_metrics import boundary_measure, region_similarity
from pipeline.formats.davis import DavisSequence, open_davis
from pipeline.formats.image_folder import load_image
from stages.extract.backbone.backbone import Backbone, load_backbone
from stages.extract.backbone.device import pick_device
from stages.extract.backbone.facets import FacetSpec, parse_facet
from stages.extract.lift.choice import require_lift
from stages.extract.lift.module import LoadedLift
from stages.extract.resize import model_input_size, resize_image
from stages.propagate import Propagator
from stages.propagate.config import PropagateConfig, RefineConfig

VARIANTS = ("raw", "bilinear", "lift", "bilinear_twice", "lift_twice", "half_stride", "double_input")
"""In order: the backbone's grid; twice that resolution, bilinearly and by LiFT; four times, the same two ways;
half the patch as stride; twice the input size."""


def bench_lift(
    root: Annotated[Path, typer.Option(help="DAVIS root: JPEGImages, Annotations, ImageSets.")],
    sizes: Annotated[
        list[int] | None, typer.Option("--size", help="Short sides in pixels; default 112, 224, 476.")
    ] = None,
    variants: Annotated[list[str] | None, typer.Option("--variant", help=f"One of {', '.join(VARIANTS)}.")] = None,
    sequences: Annotated[list[str] | None, typer.Option("--sequence", help="Only these.")] = None,
    max_frames: Annotated[int | None, typer.Option(min=3, help="Only the first frames of each sequence.")] = None,
    lift: Annotated[str, typer.Option(help="auto (bundled) or a file.")] = "auto",
    backbone: Annotated[str, typer.Option(help="Backbone by name.")] = "dinov2_vits14",
    facet: Annotated[str, typer.Option(help="Facet and layer.")] = "key@11",
    radius_cells: Annotated[float, typer.Option(min=0.0, help="Radius of propagation in cells.")] = 12,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for all numbers.")] = None,
) -> None:
    """J&F of DINO's propagation (DAVIS 2016, one object) and cost; only the features differ."""
    chosen = tuple(variants or VARIANTS)
    unknown = [name for name in chosen if name not in VARIANTS]
    if unknown:
        raise ConfigError(f"--variant {unknown[0]}: valid: {', '.join(VARIANTS)}")
    videos = open_davis(root, "2016", sequences=sequences)
    setup = Setup.load(backbone, facet, lift, device, radius_cells)
    rows: list[Row] = []
    jobs = [(size, video) for size in sizes or [112, 224, 476] for video in videos]
    for size, video in tqdm(jobs, desc="bench lift", unit="sequence"):
        for row in _run_sequence(setup, video, size, chosen, max_frames):
            _merge(rows, row)
            if output is not None:
                write_bytes_whole(output, json.dumps([row.facts() for row in rows], indent=1).encode())
    Console(soft_wrap=True).print(_table(rows))


@dataclass(frozen=True, slots=True)
class Setup:
    """What all variants share."""

    backbone: Backbone
    dense: Backbone
    spec: FacetSpec
    lift: LoadedLift
    radius_cells: float
    device: torch.device

    @classmethod
    def load(cls, backbone: str, facet: str, lift: str, device: str, radius_cells: float) -> Setup:
        """Load the backbone at its own and at half its stride, and the LiFT.

        Raises:
            ConfigError: There is no bundled LiFT for this backbone and facet.
            WeightsError: The LiFT does not fit.
        """
        where = pick_device(device)
        model = load_backbone(backbone, device=where)
        spec = parse_facet(facet).resolved(model.num_layers)
        loaded = require_lift(lift, model, spec)
        dense = load_backbone(backbone, stride_px=model.patch_px // 2, device=where)
        return cls(model, dense, spec, loaded.prepared(where), radius_cells, where)


@dataclass
class Row:
    """The scores of one variant at one size.

    Attributes:
        size: Short side of the model's input in pixels.
        variant: One of :data:`VARIANTS`.
        grid_hw: Grid of the last sequence.
        gmacs: Multiply-adds of one frame's features (backbone and LiFT), in billions.
        sequences: Mean J and F of each sequence.
        feature_seconds: Spent on features.
        propagation_seconds: Spent on propagation.
        frames: Number of frames of both times.
    """

    size: int
    variant: str
    grid_hw: tuple[int, int]
    gmacs: float
    sequences: dict[str, tuple[float, float]] = field(default_factory=dict)
    feature_seconds: float = 0.0
    propagation_seconds: float = 0.0
    frames: int = 0

    @property
    def j_and_f(self) -> float:
        """The mean over sequences of (J + F) / 2, in percent."""
        return 50 * sum(j + f for j, f in self.sequences.values()) / len(self.sequences)

    def facts(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"J&F": round(self.j_and_f, 3)}


@dataclass
class _Clip:
    """The frames of a sequence at one input size: normalized images, and the backbone's maps once computed."""

    setup: Setup
    frames: list[npt.NDArray[np.uint8]]
    size: int
    made: dict[str, tuple[list[tuple[Tensor, Tensor]], float]] = field(default_factory=dict)

    def maps(self, kind: str) -> tuple[list[tuple[Tensor, Tensor]], float]:
        """(image, map) of every frame and the seconds the backbone took; ``kind`` is plain, dense or large."""
        if kind not in self.made:
            backbone = self.setup.dense if kind == "dense" else self.setup.backbone
            started, pairs = 0.0, []
            for frame in self.frames:
                image = self._image(frame, self.size * 2 if kind == "large" else self.size)
                begin = time.perf_counter()
                found = _extract(backbone, image, self.setup.spec)
                started += time.perf_counter() - begin
                pairs.append((image, found))
            self.made[kind] = (pairs, started)
        return self.made[kind]

    def _image(self, frame: npt.NDArray[np.uint8], size: int) -> Tensor:
        backbone = self.setup.backbone
        input_hw = model_input_size((frame.shape[0], frame.shape[1]), size, backbone.patch_px)
        pixels = torch.from_numpy(resize_image(frame, input_hw, "area")).permute(2, 0, 1)[None].float() / 255
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (backbone.mean, backbone.std))
        return ((pixels - mean) / std).to(self.setup.device)


def _extract(backbone: Backbone, image: Tensor, spec: FacetSpec) -> Tensor:
    with torch.inference_mode():
        found: Tensor = backbone(image, [spec]).maps[str(spec)]
    return found


def _refine(setup: Setup, variant: str, image: Tensor, found: Tensor) -> Tensor:
    """What a variant does after the backbone."""
    times = 2 if variant.endswith("twice") else 1
    if variant.startswith("lift"):
        return setup.lift.upsample(image, found, times)
    if variant.startswith("bilinear"):
        return interpolate(found, scale_factor=2**times, mode="bilinear", align_corners=False)
    return found


def _kind(variant: str) -> str:
    return {"half_stride": "dense", "double_input": "large"}.get(variant, "plain")


def _grid(setup: Setup, variant: str, image_hw: tuple[int, int], image: Tensor) -> PatchGrid:
    backbone = setup.dense if variant == "half_stride" else setup.backbone
    grid = backbone.grid(image_hw, (image.shape[-2], image.shape[-1]))
    doublings = {"bilinear": 1, "lift": 1, "bilinear_twice": 2, "lift_twice": 2}.get(variant, 0)
    for _ in range(doublings):
        grid = grid.subdivided(2)
    return grid


def _run_sequence(
    setup: Setup, video: DavisSequence, size: int, variants: Sequence[str], max_frames: int | None
) -> Iterator[Row]:
    names = video.frame_names[:max_frames]
    frames = [load_image(video.frames_dir / f"{name}.jpg") for name in names]
    clip = _Clip(setup, frames, size)
    for variant in variants:
        pairs, seconds = clip.maps(_kind(variant))
        yield _score(setup, clip, video, names, variant, pairs, seconds)


def _score(
    setup: Setup,
    clip: _Clip,
    video: DavisSequence,
    names: Sequence[str],
    variant: str,
    pairs: list[tuple[Tensor, Tensor]],
    seconds: float,
) -> Row:
    """Propagate the first mask and compare with the ground truth; the first and the last frame do not count."""
    image_hw = clip.frames[0].shape[0], clip.frames[0].shape[1]
    grid = _grid(setup, variant, image_hw, pairs[0][0])
    refining = 0.0

    def packets() -> Iterator[Packet]:
        nonlocal refining
        for index, (frame, (image, found)) in enumerate(zip(clip.frames, pairs, strict=True)):
            begin = time.perf_counter()
            refined = _refine(setup, variant, image, found)
            refining += time.perf_counter() - begin
            yield Packet(Frame(frame, index, index / 24), Features(refined[0], grid))

    config = PropagateConfig(
        radius_cells=setup.radius_cells, first_labels="nearest", refine=RefineConfig(enabled=False)
    )
    propagator = Propagator(config, masks={0: video.first_mask()})
    begin, scores = time.perf_counter(), []
    scoring = 0.0
    for packet in propagator(packets()):
        pause = time.perf_counter()
        if 0 < packet.index < len(names) - 1 and packet.labels is not None:
            ours = packet.labels.index_mask == 1
            truth = video.annotation(names[packet.index]) == 1
            scores.append((region_similarity(ours, truth), boundary_measure(ours, truth)))
        scoring += time.perf_counter() - pause
    mean_j, mean_f = np.mean(scores, axis=0)
    total = time.perf_counter() - begin
    row = Row(clip.size, variant, grid.grid_hw, _gmacs(setup, variant, *pairs[0]))
    row.sequences[video.name] = (float(mean_j), float(mean_f))
    row.feature_seconds = seconds + refining
    row.propagation_seconds = total - refining - scoring
    row.frames = len(names)
    return row


def _gmacs(setup: Setup, variant: str, image: Tensor, found: Tensor) -> float:
    """Multiply-adds of matrix products, convolutions and attention for one frame, in billions."""
    backbone = setup.dense if variant == "half_stride" else setup.backbone
    counter = FlopCounterMode(display=False)
    with counter:
        _extract(backbone, image, setup.spec)
        _refine(setup, variant, image, found)
    return float(counter.get_total_flops()) / 2e9


def _merge(rows: list[Row], new: Row) -> None:
    for row in rows:
        if (row.size, row.variant) == (new.size, new.variant):
            row.sequences |= new.sequences
            row.feature_seconds += new.feature_seconds
            row.propagation_seconds += new.propagation_seconds
            row.frames += new.frames
            row.grid_hw = new.grid_hw
            return
    rows.append(new)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="DAVIS 2016, DINO's propagation: J&F against cost")
    for heading in ("size", "features", "grid", "J&F", "J", "F", "GMAC per frame", "features s", "propagation s"):
        table.add_column(heading, justify="left" if heading == "features" else "right")
    for row in rows:
        count = len(row.sequences)
        mean_j = 100 * sum(j for j, _ in row.sequences.values()) / count
        mean_f = 100 * sum(f for _, f in row.sequences.values()) / count
        table.add_row(
            str(row.size),
            row.variant,
            f"{row.grid_hw[0]} x {row.grid_hw[1]}",
            f"{row.j_and_f:.2f}",
            f"{mean_j:.2f}",
            f"{mean_f:.2f}",
            f"{row.gmacs:.1f}",
            f"{row.feature_seconds / row.frames:.3f}",
            f"{row.propagation_seconds / row.frames:.3f}",
        )
    return table
