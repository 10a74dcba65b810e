"""Windowed top-k propagation by a Triton kernel (:mod:`stages.propagate.triton_topk`): its launch on a frame.

Import only where :func:`stages.propagate.kernel_choice.has_triton` is true.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from stages.propagate.triton_topk import propagate_tile
from stages.propagate.windows import Window

_NUM_PARAMETERS = 8
_ANYTHING = 3e38
_MAX_LABELS = 64
"""Labels that one program adds up."""


def propagate_with_triton(
    target: Tensor,
    contexts: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    windows: Sequence[Window],
    top_k: int,
    temperature: float,
    keep_ties: bool,
    motion: Tensor | None = None,
    search_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Propagate labels; the arguments and the result are those of ``propagate_labels``, already checked.

    Without ``keep_ties``, of cells that are as similar as the k-th the first in the order of contexts, rows and
    columns vote. ``search_dtype`` is what descriptors are rounded to before they are multiplied.
    """
    height, width = target.shape[1:]
    query = target.to(search_dtype).permute(1, 2, 0).contiguous()
    keys = torch.stack([context.to(search_dtype).permute(1, 2, 0) for context in contexts])
    values = torch.stack([item.to(torch.float32).permute(1, 2, 0) for item in labels]).contiguous()
    num_labels = values.shape[-1]
    parameters = _parameters(tuple(windows), temperature, max(height, width), target.device)
    out = torch.empty((num_labels, height, width), dtype=torch.float32, device=target.device)
    side, block_label = 4, max(16, min(_MAX_LABELS, triton.next_power_of_2(num_labels)))
    kept = max(2, triton.next_power_of_2(top_k))
    grid = (triton.cdiv(height, side) * triton.cdiv(width, side), triton.cdiv(num_labels, block_label))
    propagate_tile[grid](
        query, keys, values, parameters, parameters if motion is None else motion.contiguous(), out,
        len(contexts), height, width, query.shape[-1], num_labels, temperature,
        TOP_K=top_k, KEPT=kept, KEEP_TIES=keep_ties, HAS_MOTION=motion is not None, SIDE=side,
        BLOCK_KEY=max(64, kept), BLOCK_CHANNEL=64, BLOCK_LABEL=block_label, enable_fp_fusion=False,
    )  # fmt: skip
    return out


@lru_cache(maxsize=256)
def _parameters(windows: tuple[Window, ...], temperature: float, whole: int, device: torch.device) -> Tensor:
    """What the kernel reads of every context's window, float32 ``(n, 8)``; uploaded once per set of windows."""
    with torch.inference_mode(False):
        rows = [_of_window(window, temperature, whole) for window in windows]
        return torch.tensor(rows, dtype=torch.float32).to(device)


def _of_window(window: Window, temperature: float, whole: int) -> list[float]:
    """Largest offset on an axis, largest squared one, the prior's factor and cap, frames of motion, reach."""
    radius = window.radius_cells or 0.0
    furthest, largest_square = _ANYTHING, _ANYTHING
    if radius and window.shape == "square":
        furthest = radius
    elif radius:
        square = np.float32(radius**2)
        largest_square = float(square if window.inclusive else np.nextafter(square, np.float32(0)))
    factor, cap = window.prior(temperature)
    reach = whole if window.reach is None else window.reach
    values = [furthest, largest_square, factor, min(cap, _ANYTHING), float(window.prior_frames), float(reach)]
    return [*values, *[0.0] * (_NUM_PARAMETERS - len(values))]


def compile_for(capability: int, dtype: str = "fp16", top_k: int = 5) -> Any:
    """Compile the kernel for a card that need not be here, for example ``compile_for(90)`` for an H100."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointer = {"query_ptr": f"*{dtype}", "keys_ptr": f"*{dtype}"}
    signature = {
        **pointer, "labels_ptr": "*fp32", "parameters_ptr": "*fp32", "motion_ptr": "*fp32", "out_ptr": "*fp32",
        "contexts": "i32", "height": "i32", "width": "i32", "channels": "i32", "num_labels": "i32",
        "temperature": "fp32",
    }  # fmt: skip
    constants = {
        "TOP_K": top_k, "KEPT": max(2, triton.next_power_of_2(top_k)), "KEEP_TIES": True, "HAS_MOTION": True,
        "SIDE": 4, "BLOCK_KEY": 64, "BLOCK_CHANNEL": 64, "BLOCK_LABEL": 16,
    }  # fmt: skip
    signature |= dict.fromkeys(constants, "constexpr")
    places = {(list(propagate_tile.arg_names).index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=propagate_tile, signature=signature, constexprs=places)
    return triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"enable_fp_fusion": False},
    )
