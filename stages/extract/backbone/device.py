"""Choosing the device and the precision, and keeping weights in the precision they are multiplied in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import nn

from pipeline.core.errors import ConfigError
from stages.extract.backbone.cpu_precision import faster_precision

Precision = Literal["auto", "fp32", "bf16", "fp16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: The device does not exist.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device '{name}' does not exist; valid: auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device '{name}': there are {torch.cuda.device_count()} CUDA devices here; set device to auto or cpu"
        )
    return device


def pick_precision(name: Precision, device: torch.device) -> torch.dtype:
    """``auto`` is bf16 on CUDA devices that have it, else fp16; on a CPU bf16 where that is faster, else fp32."""
    if name != "auto":
        return _DTYPES[name]
    if device.type != "cuda":
        return faster_precision().dtype
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Autocast to ``dtype``; nothing for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def store_matmul_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Keep the weights of linear and convolution layers in ``dtype``, in place.

    Autocast would convert the weights of a frozen model on every forward, because it remembers conversions only
    for parameters that need gradients. Norms, layer scales, embeddings and the residual stream stay in float32.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            layer.to(dtype)
