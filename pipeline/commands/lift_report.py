"""``lift-report``: a LiFT's agreement across scales, its self-similarity maps, its size and its cost."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate
from tqdm import tqdm

from pipeline.core.device_stream import streams_of
from pipeline.core.files import list_images, write_bytes_whole
from pipeline.evaluation.lift_properties import (
    LinearCka,
    as_samples,
    count_macs,
    median_seconds,
    pairs_of,
    self_similarity,
)
from pipeline.formats.image_folder import load_image
from pipeline.training.lift_views import Augmentation, make_scales, make_view
from stages.extract.backbone.backbone import Backbone, load_backbone
from stages.extract.backbone.device import pick_device
from stages.extract.backbone.facets import FacetSpec, parse_facet
from stages.extract.lift.choice import require_lift
from stages.extract.lift.module import LoadedLift

SCALES = (112, 224, 448)
KINDS = ("raw", "bilinear", "LiFT")


def lift_report(
    images: Annotated[Path, typer.Option(help="Folder of images; preferably not those the LiFT was trained on.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for report.json and the maps.")],
    lift: Annotated[str, typer.Option(help="auto (bundled) or a file.")] = "auto",
    backbone: Annotated[str, typer.Option(help="Backbone by name.")] = "dinov2_vits14",
    facet: Annotated[str, typer.Option(help="Facet and layer.")] = "key@11",
    limit: Annotated[int, typer.Option(min=1, help="Number of images, spread evenly over the folder.")] = 50,
    maps: Annotated[int, typer.Option(min=0, help="Number of images to draw self-similarity maps of.")] = 4,
    time_hw: Annotated[tuple[int, int], typer.Option(help="Height and width of the timed input.")] = (476, 840),
    repeats: Annotated[int, typer.Option(min=0, help="Timed runs; 0 measures no times.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """CKA between scales for raw, bilinear and lifted features; self-similarity maps; parameters, FLOPs, times."""
    target = pick_device(device)
    model, spec, loaded = _load(backbone, facet, lift, target)
    files = list_images(images, recursive=True)
    chosen = files[:: max(1, len(files) // limit)][:limit]
    output.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"lift": loaded.report(), "images": len(chosen)}
    report["cka"], report["cosine_to_true"] = _scales(model, spec, loaded, chosen)
    report["cost"] = _cost(model, spec, loaded, (224, 224), 0)
    if repeats:
        report["cost_timed"] = _cost(model, spec, loaded, time_hw, repeats)
    for path in chosen[:maps]:
        write_bytes_whole(output / f"self_similarity_{path.stem}.png", _draw(model, spec, loaded, path))
    write_bytes_whole(output / "report.json", json.dumps(report, indent=1).encode())
    _print(report, output)


def _load(backbone: str, facet: str, lift: str, device: torch.device) -> tuple[Backbone, FacetSpec, LoadedLift]:
    model = load_backbone(backbone, device=device)
    spec = parse_facet(facet).resolved(model.num_layers)
    loaded = require_lift(lift, model, spec)
    return model, spec, loaded.prepared(device)


def _pyramid(model: Backbone, path: Path) -> dict[int, Tensor]:
    """The normalized image ``(1, 3, S, S)`` at every scale, resized to a square as in training."""
    view = make_view(load_image(path), Augmentation(), SCALES[-1])[None]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.mean, model.std))
    scales = make_scales((view - mean) / std, "antialiased")
    device = next(model.parameters()).device
    return {scale.shape[-1]: scale.contiguous().to(device) for scale in scales}


def _features(
    model: Backbone, spec: FacetSpec, loaded: LoadedLift, scales: dict[int, Tensor]
) -> dict[str, dict[int, Tensor]]:
    """Maps ``(1, C, h, w)`` by kind and scale."""
    with torch.inference_mode():
        raw = {size: model(image, [spec]).maps[str(spec)] for size, image in scales.items()}
        return {
            "raw": raw,
            "bilinear": {size: interpolate(found, scale_factor=2, mode="bilinear") for size, found in raw.items()},
            "LiFT": {size: loaded.upsample(scales[size], found) for size, found in raw.items()},
        }


def _scales(
    model: Backbone, spec: FacetSpec, loaded: LoadedLift, files: list[Path]
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """CKA between scales on the coarser grid, and CKA and cosine to the true features of twice the size."""
    gathered = {kind: {pair: LinearCka() for pair in pairs_of(SCALES)} for kind in KINDS}
    cosines: dict[str, dict[str, list[float]]] = {kind: {} for kind in KINDS[1:]}
    for path in tqdm(files, desc="scales", unit="image"):
        found = _features(model, spec, loaded, _pyramid(model, path))
        for kind, by_pair in gathered.items():
            for (small, large), cka in by_pair.items():
                coarse = found[kind][small]
                grid = (int(coarse.shape[-2]), int(coarse.shape[-1]))
                cka.add(as_samples(coarse), as_samples(found[kind][large], grid))
        for kind, values in cosines.items():
            for small, large in ((112, 224), (224, 448)):
                cosine = cosine_similarity(found[kind][small], found["raw"][large], dim=1).mean()
                values.setdefault(f"{small}->{large}", []).append(float(cosine))
    cka_table = {
        kind: {f"{a}-{b}": round(cka.value(), 4) for (a, b), cka in by_pair.items()}
        for kind, by_pair in gathered.items()
    }
    means = {
        kind: {pair: round(sum(v) / len(v), 4) for pair, v in values.items()} for kind, values in cosines.items()
    }
    return cka_table, means


def _cost(
    model: Backbone, spec: FacetSpec, loaded: LoadedLift, image_hw: tuple[int, int], repeats: int
) -> dict[str, Any]:
    """Parameters, multiply-adds and, with ``repeats``, seconds of backbone and LiFT at a size."""
    device = next(model.parameters()).device
    image = torch.randn(1, 3, *image_hw, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.inference_mode():
        features = model(image, [spec]).maps[str(spec)]

        def extract() -> object:
            return model(image, [spec]).maps

        def lift() -> object:
            return loaded.upsample(image, features)

        macs = {"backbone": count_macs(extract), "lift": count_macs(lift)}
        result: dict[str, Any] = {
            "image_hw": list(image_hw),
            "parameters": {
                "backbone": sum(p.numel() for p in model.parameters()),
                "lift": loaded.num_parameters,
            },
            "gmacs": {name: round(value / 1e9, 3) for name, value in macs.items()},
            "lift_share_of_macs": round(macs["lift"] / macs["backbone"], 4),
        }
        if repeats:

            def synchronized() -> float:
                streams_of(device).synchronize()
                return time.perf_counter()

            times = {"backbone": median_seconds(extract, repeats, synchronized)}
            times["lift"] = median_seconds(lift, repeats, synchronized)
            result["seconds"] = {name: round(value, 4) for name, value in times.items()}
            result["lift_share_of_time"] = round(times["lift"] / times["backbone"], 4)
            result["device"] = str(device)
            result["threads"] = torch.get_num_threads()
    return result


def _draw(model: Backbone, spec: FacetSpec, loaded: LoadedLift, path: Path) -> bytes:
    """Self-similarity to the image's center at 224 px, beside the true maps of 448 px, as PNG."""
    scales = _pyramid(model, path)
    found = _features(model, spec, loaded, scales)
    twice = loaded.upsample(scales[224], found["raw"][224], 2)
    panels = {
        "raw, 224 px": found["raw"][224],
        "bilinear": found["bilinear"][224],
        "LiFT": found["LiFT"][224],
        "LiFT twice": twice,
        "true, 448 px": found["raw"][448],
    }
    figure = Figure(figsize=(3 * (len(panels) + 1), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels) + 1)
    picture = scales[448][0].cpu()
    low, high = picture.amin(), picture.amax()
    axes[0].imshow(((picture - low) / (high - low)).permute(1, 2, 0).numpy(), extent=(0, 1, 1, 0))
    axes[0].plot(0.5, 0.5, "r+", markersize=12)
    axes[0].set_title(path.stem)
    for axis, (title, values) in zip(axes[1:], panels.items(), strict=True):
        axis.imshow(self_similarity(values[0], (0.5, 0.5)).cpu().numpy(), vmin=0, vmax=1, extent=(0, 1, 1, 0))
        axis.set_title(f"{title}, {values.shape[-2]} x {values.shape[-1]}")
    for axis in axes:
        axis.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()


def _print(report: dict[str, Any], output: Path) -> None:
    console = Console(soft_wrap=True)
    table = Table(title="Linear CKA between input sizes (on the coarser grid)")
    pairs = list(report["cka"]["raw"])
    for heading in ("features", *pairs):
        table.add_column(heading)
    for kind, values in report["cka"].items():
        table.add_row(kind, *(f"{values[pair]:.4f}" for pair in pairs))
    console.print(table)
    for kind, values in report["cosine_to_true"].items():
        console.print(f"cosine to the true features, {kind}: {values}")
    for cost in (report["cost"], report.get("cost_timed")):
        if cost is not None:
            console.print(cost)
    console.print(f"wrote {output / 'report.json'}")
