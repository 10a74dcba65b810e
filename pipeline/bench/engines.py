"""``bench engines``: the backbone's forward in PyTorch beside OpenVINO and ONNX Runtime, on one thread.

Every engine gets the same pictures and gives the tokens of the last layer. Beside CPU seconds per picture stands
the mean cosine of the tokens to those of PyTorch in fp32, which shows what a lower precision loses. OpenVINO
and ONNX Runtime are not among the project's dependencies: ``pip install 'liftstream[engines]'``.
"""

from __future__ import annotations

import copy
import io
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.core.files import write_json_whole
from pipeline.core.threads import ThreadPools, set_thread_pools
from stages.extract.backbone.backbone import Backbone, load_backbone
from stages.extract.backbone.cpu_precision import bf16_instructions
from stages.extract.backbone.device import autocast, store_matmul_weights
from stages.extract.backbone.facets import parse_facet

Forward = Callable[[Tensor], Tensor]
"""Pictures ``(B, 3, H, W)`` in, tokens of the patches ``(B, N, C)`` out."""
_TOKENS = parse_facet("token@-1:norm")


@dataclass(frozen=True, slots=True)
class EngineCost:
    """One engine in one precision.

    Attributes:
        name: Engine and precision.
        cpu_seconds: Per picture; None where it did not run.
        cosine: Mean over tokens to those of PyTorch in fp32.
        note: Why it did not run.
    """

    name: str
    cpu_seconds: float | None = None
    cosine: float | None = None
    note: str = ""


def bench_engines(
    backbone: Annotated[str, typer.Option(help="A name of the table, or timm's name.")] = "dinov2_vits14",
    weights: Annotated[str | None, typer.Option(help="File, or 'random'; the bundled ones by default.")] = None,
    height: Annotated[int, typer.Option(min=14, help="Input height in px.")] = 280,
    width: Annotated[int, typer.Option(min=14, help="Input width in px.")] = 490,
    batch: Annotated[int, typer.Option(min=1, help="Pictures per forward.")] = 4,
    repeats: Annotated[int, typer.Option(min=1, help="Forwards of each engine; the fastest counts.")] = 3,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file for the numbers.")] = None,
) -> None:
    """CPU seconds per picture of the forward in each engine that is installed."""
    set_thread_pools(ThreadPools(torch=1))
    model = load_backbone(backbone, weights=weights, position="timm")
    pictures = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    # Smooth pictures: what a model makes of noise says little about what it makes of photographs.
    pictures = F.interpolate(F.avg_pool2d(pictures, 14), size=(height, width), mode="bicubic") * 4
    costs = measure_engines(model, pictures, repeats)
    table = Table(title=f"{backbone}, {batch} x {height} x {width} px, one thread", title_justify="left")
    for name in ("engine", "CPU s per picture", "over PyTorch fp32", "cosine", ""):
        table.add_column(name, justify="left" if name in ("engine", "") else "right")
    first = costs[0].cpu_seconds or 0.0
    for cost in costs:
        if cost.cpu_seconds is None or cost.cosine is None:
            table.add_row(cost.name, "", "", "", cost.note)
            continue
        table.add_row(
            cost.name, f"{cost.cpu_seconds:.3f}", f"{first / cost.cpu_seconds:.2f}", f"{cost.cosine:.5f}", ""
        )
    Console(soft_wrap=True).print(table)
    if output is not None:
        write_json_whole(output, {"engines": [asdict(cost) for cost in costs]})


def measure_engines(model: Backbone, pictures: Tensor, repeats: int) -> list[EngineCost]:
    """The cost of every engine; timm's own forward in PyTorch in fp32 first."""
    vit = _of_fixed_size(copy.deepcopy(model.vit).eval(), (pictures.shape[2], pictures.shape[3]))
    costs: list[EngineCost] = []
    want: Tensor | None = None
    with tempfile.TemporaryDirectory() as folder:
        engines = _engines(model, vit, pictures, Path(folder))
        for name, make in tqdm(engines.items(), desc="bench engines", unit="engine"):
            try:
                with _quiet():
                    forward = make()
            except ImportError as error:
                costs.append(EngineCost(name, note=f"not installed: {error.name}"))
                continue
            seconds, tokens = _time(forward, pictures, repeats)
            want = tokens if want is None else want
            cosine = float(F.cosine_similarity(tokens.float(), want.float(), dim=-1).mean())
            costs.append(EngineCost(name, seconds / len(pictures), cosine))
    return costs


def _engines(model: Backbone, vit: nn.Module, pictures: Tensor, folder: Path) -> dict[str, Callable[[], Forward]]:
    """How each engine is made; what is not installed raises ImportError then."""
    engines: dict[str, Callable[[], Forward]] = {
        "PyTorch fp32, timm's forward": lambda: _Patches(vit, model.num_prefix_tokens),
        "PyTorch fp32": lambda: _ours(copy.deepcopy(model), torch.float32),
    }
    if bf16_instructions():
        engines["PyTorch bf16"] = lambda: _ours(copy.deepcopy(model), torch.bfloat16)
    wrapped = _Patches(vit, model.num_prefix_tokens)
    engines["OpenVINO f32"] = lambda: _openvino(wrapped, pictures, "f32")
    if bf16_instructions():
        engines["OpenVINO bf16"] = lambda: _openvino(wrapped, pictures, "bf16")
    engines["ONNX Runtime fp32"] = lambda: _onnxruntime(wrapped, pictures, folder, int8=False)
    engines["ONNX Runtime int8, dynamic"] = lambda: _onnxruntime(wrapped, pictures, folder, int8=True)
    return engines


def _of_fixed_size(vit: nn.Module, size_hw: tuple[int, int]) -> nn.Module:
    """A model of timm for one input size, in place: ONNX has no operator for resizing the position embedding."""
    resize: Any = vit.set_input_size
    resize(img_size=size_hw)
    vit.dynamic_img_size = False  # type: ignore[assignment]
    patches: Any = vit.patch_embed
    patches.flatten, patches.output_fmt = True, type(patches.output_fmt).NCHW
    return vit


class _Patches(nn.Module):
    """timm's forward without the tokens before the patches."""

    def __init__(self, vit: nn.Module, num_prefix_tokens: int) -> None:
        super().__init__()
        self.vit = vit
        self.first = num_prefix_tokens

    def forward(self, pictures: Tensor) -> Tensor:
        """Tokens ``(B, N, C)``."""
        features: Any = self.vit.forward_features
        tokens: Tensor = features(pictures)
        return tokens[:, self.first :]


def _ours(model: Backbone, dtype: torch.dtype) -> Forward:
    store_matmul_weights(model.vit, dtype)

    def forward(pictures: Tensor) -> Tensor:
        with autocast(pictures.device, dtype):
            tokens: Tensor = model(pictures, (_TOKENS,)).maps[str(_TOKENS)]
        return tokens.flatten(2).transpose(1, 2)

    return forward


def _openvino(wrapped: nn.Module, pictures: Tensor, precision: str) -> Forward:
    import openvino

    converted = openvino.convert_model(wrapped, example_input=pictures, input=[list(pictures.shape)])
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(converted, "CPU", options)
    return lambda batch: torch.from_numpy(np.array(compiled(batch.numpy())[0]))


def _onnxruntime(wrapped: nn.Module, pictures: Tensor, folder: Path, *, int8: bool) -> Forward:
    import onnx  # noqa: F401  # the exporter needs it, and says so less clearly
    import onnxruntime

    path = folder / "model.onnx"
    if not path.is_file():
        torch.onnx.export(wrapped, (pictures,), str(path), dynamo=False, input_names=["pictures"])
    if int8:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(path, folder / "int8.onnx")
        path = folder / "int8.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {"pictures": batch.numpy()})[0])


@torch.inference_mode()
def _time(forward: Forward, pictures: Tensor, repeats: int) -> tuple[float, Tensor]:
    """CPU seconds of the fastest forward after one to warm up, and what it gives."""
    tokens = forward(pictures)
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        forward(pictures)
        seconds.append(time.process_time() - started)
    return min(seconds), tokens


@contextmanager
def _quiet() -> Iterator[None]:
    """Converters warn of every traced branch and print progress."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
