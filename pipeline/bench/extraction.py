"""``bench extraction``: this project's forward beside timm's own, on the same batch, in one run."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pipeline.core.device_stream import streams_of
from stages.extract.backbone.backbone import Backbone, BackboneOutput, load_backbone
from stages.extract.backbone.device import Precision, autocast, pick_device, pick_precision, store_matmul_weights
from stages.extract.backbone.facets import parse_facet
from stages.extract.saliency import SaliencyEstimator, pick_cue

Measured = dict[str, list[tuple[float, float]]]  # wall and CPU seconds of every round, by variant

Forward = Callable[[], "BackboneOutput | Tensor | None"]
"""One forward of a variant."""

_BARE = "timm forward_features"


def extraction(
    backbone: Annotated[str, typer.Option(help="A name of the table, or timm's name.")] = "dinov2_vits14",
    weights: Annotated[
        str | None, typer.Option(help="File, or 'random'; the bundled or downloaded ones by default.")
    ] = None,
    height: Annotated[int, typer.Option(help="Input height in px.")] = 476,
    width: Annotated[int, typer.Option(help="Input width in px.")] = 840,
    batch: Annotated[int, typer.Option(help="Images per forward; 0 is 1 on the CPU and 16 on CUDA.")] = 0,
    repeats: Annotated[int, typer.Option(help="Rounds; each times every variant once.")] = 9,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[Precision, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
) -> None:
    """Extraction throughput over a bare timm forward on the same batch, variants taking turns."""
    where = pick_device(device)
    dtype = pick_precision(precision, where)
    model = load_backbone(backbone, weights=weights, position="timm").to(where)
    images = torch.randn(batch or (16 if where.type == "cuda" else 1), 3, height, width, device=where)
    with torch.inference_mode():
        seconds = _measure(_variants(model, images, dtype), repeats, where)
        peak = matmul_peak(where, dtype) if where.type == "cuda" else None
    grid_hw = model.grid((height, width), (height, width)).grid_hw
    operations = _forward_operations(model, grid_hw[0] * grid_hw[1]) * len(images)
    title = (
        f"{backbone}, {len(images)} x {height} x {width} px, {where}, {str(dtype).removeprefix('torch.')}, "
        f"{torch.get_num_threads()} threads, median of {repeats} rounds"
    )
    Console(soft_wrap=True).print(_table(title, seconds, len(images), operations, peak))


def _variants(model: Backbone, images: Tensor, dtype: torch.dtype) -> dict[str, Forward]:
    """What is timed. timm's model is copied before this project's weights change their precision."""
    bare = copy.deepcopy(model.vit)
    store_matmul_weights(model.vit, dtype)
    tokens, keys = (parse_facet("token@-1:norm"),), (parse_facet("key@-1"),)
    cue = pick_cue("auto", model)
    estimate = SaliencyEstimator(cue, keys, model.num_layers, final_cls=False)
    asked = keys if estimate.spec is None else (*keys, estimate.spec)

    def run(forward: Forward) -> Forward:
        def timed() -> BackboneOutput | Tensor | None:
            with autocast(images.device, dtype):
                return forward()

        return timed

    def keys_with_cue() -> BackboneOutput | Tensor | None:
        with autocast(images.device, dtype):
            output = model(images, asked, saliency=cue == "cls_attention")
        return estimate(output, output.maps[str(keys[0])].float())

    return {
        _BARE: run(lambda: bare.forward_features(images)),
        "tokens of the last layer": run(lambda: model(images, tokens)),
        "keys of the last layer": run(lambda: model(images, keys)),
        "keys and CLS attention": run(lambda: model(images, keys, saliency=True)),
        f"keys and saliency ({cue})": keys_with_cue,
    }


def _measure(variants: dict[str, Forward], repeats: int, device: torch.device) -> Measured:
    """Wall and CPU seconds by variant; the variants take turns, so that a busy machine slows them alike."""
    seconds: Measured = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, forward in variants.items():
            _wait(device)
            started, worked = time.perf_counter(), time.process_time()
            forward()
            _wait(device)
            if turn:  # the first round warms up
                seconds[name].append((time.perf_counter() - started, time.process_time() - worked))
    return seconds


def _wait(device: torch.device) -> None:
    streams_of(device).synchronize()


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int = 8192) -> float:
    """Operations per second of a large square matrix product, measured."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = _measure({"matmul": lambda: left @ right}, 20, device)["matmul"]
    return float(2 * size**3 / min(wall for wall, _ in seconds))


def _forward_operations(model: Backbone, cells: int) -> float:
    """Multiplications and additions of one image through the whole ViT: its linear layers and its attention."""
    tokens = cells + model.num_prefix_tokens
    linear = sum(
        layer.weight.numel() for layer in model.vit.blocks.modules() if isinstance(layer, torch.nn.Linear)
    )
    embedding = cells * model.vit.patch_embed.proj.weight.numel()
    attention = 2 * model.num_layers * tokens * tokens * model.embed_dim
    return float(2 * (tokens * linear + embedding + attention))


def _table(title: str, seconds: Measured, images: int, operations: float, peak: float | None) -> Table:
    table = Table(title=title)
    table.add_column("forward")
    last = "of matmul peak" if peak else "in CPU time"
    for name in ("ms", "images/s", "over timm", last):
        table.add_column(name, justify="right")
    bare = seconds[_BARE]
    for name, own in seconds.items():
        wall = median(one for one, _ in own)
        share = operations / wall / peak if peak else _ratio(bare, own, 1)
        row = (f"{wall * 1e3:.1f}", f"{images / wall:.2f}", f"{_ratio(bare, own, 0):.3f}", f"{share:.3f}")
        table.add_row(name, *row)
    if peak:
        table.caption = (
            f"measured matmul peak {peak / 1e12:.0f} TFLOP/s; every row is credited with the operations of the "
            f"whole forward, {operations / images / 1e9:.0f} GFLOP an image"
        )
    return table


def _ratio(bare: list[tuple[float, float]], own: list[tuple[float, float]], clock: int) -> float:
    """Median over the rounds, so that what slows a whole round down cancels; CPU time also on a busy machine."""
    return median(one[clock] / other[clock] for one, other in zip(bare, own, strict=True))
