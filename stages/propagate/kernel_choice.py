"""Which implementation propagates: the tiled one, or the Triton kernel for cards."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from pipeline.core.errors import ConfigError

Kernel = Literal["auto", "triton", "tiled"]
Implementation = Callable[..., Tensor]


@lru_cache(maxsize=1)
def has_triton() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("triton") is not None


def pick_kernel(kernel: Kernel, device: torch.device) -> Literal["triton", "tiled"]:
    """``auto`` is the kernel on CUDA and the tiled implementation elsewhere.

    Raises:
        ConfigError: The kernel is wanted where it cannot run.
    """
    if kernel == "tiled" or (kernel == "auto" and device.type != "cuda"):
        return "tiled"
    if not has_triton():
        raise ConfigError(
            f"propagate.kernel '{kernel}' needs the package triton on {device}; install liftstream[gpu], or set "
            "propagate.kernel to tiled"
        )
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError(f"propagate.kernel 'triton' needs a CUDA device, not {device}; set it to auto or tiled")
    return "triton"
