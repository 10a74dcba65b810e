"""The faster precision of matrix products on this CPU: bf16 where the processor has instructions for it.

A processor may lack them (AVX-512 BF16, AMX), or have them at no gain, so matrix products of a ViT's shape are
timed once. The result is kept in a small file in the user's cache folder, because a choice that changed from run
to run would change results.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F

from pipeline.core.errors import OutputError
from pipeline.core.files import write_json_whole

_LEAST_GAIN: Final = 1.2
_ROUNDS: Final = 5
# Tokens of one frame, and a ViT-S block's first MLP layer.
_TOKENS, _WIDTH, _HIDDEN = 704, 384, 1536


@dataclass(frozen=True, slots=True)
class CpuPrecision:
    """What was chosen, and why.

    Attributes:
        dtype: ``torch.bfloat16`` or ``torch.float32``.
        instructions: The bf16 instructions of the processor, or empty.
        gain: How many times as fast bf16 matrix products were; None without instructions.
    """

    dtype: torch.dtype
    instructions: str
    gain: float | None

    def reason(self) -> str:
        """One line for ``run.json``."""
        if self.gain is None:
            return "fp32: the CPU has no bf16 instructions"
        name = "bf16" if self.dtype == torch.bfloat16 else "fp32"
        return f"{name}: bf16 matrix products with {self.instructions} are {self.gain:.1f} times as fast as fp32"


@cache
def faster_precision() -> CpuPrecision:
    """Measured once per machine and version of torch."""
    instructions = bf16_instructions()
    if not instructions:
        return CpuPrecision(torch.float32, "", None)
    key = {"cpu": _cpu_name(), "torch": torch.__version__, "instructions": instructions}
    gain = _read_gain(key)
    if gain is None:
        gain = round(measure_gain(), 2)
        with suppress(OutputError, OSError):  # no cache folder: measured again next time
            cache_file().parent.mkdir(parents=True, exist_ok=True)
            write_json_whole(cache_file(), {**key, "gain": gain})
    return CpuPrecision(torch.bfloat16 if gain >= _LEAST_GAIN else torch.float32, instructions, gain)


def bf16_instructions() -> str:
    """The processor's instructions for bf16 products: ``AMX``, ``AVX-512 BF16`` or empty."""
    checks: dict[str, Callable[[], bool]] = {
        "AMX": torch.cpu._is_amx_tile_supported,
        "AVX-512 BF16": torch.cpu._is_avx512_bf16_supported,
    }
    return next((name for name, is_there in checks.items() if is_there()), "")


def cache_file() -> Path:
    """Where the measurement is kept: ``$XDG_CACHE_HOME`` or ``~/.cache``, then ``liftstream/``."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "liftstream" / "cpu_precision.json"


@torch.inference_mode()
def measure_gain() -> float:
    """CPU time of a linear layer in fp32 over that in bf16; the best of a few rounds each, taking turns."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(_TOKENS, _WIDTH, generator=generator)
    weight = torch.randn(_HIDDEN, _WIDTH, generator=generator)
    cases = {dtype: (tokens.to(dtype), weight.to(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in cases}
    for turn in range(_ROUNDS + 1):
        for dtype, (left, right) in cases.items():
            started = time.process_time()
            F.linear(left, right)
            if turn:  # the first round warms up
                seconds[dtype].append(time.process_time() - started)
    return min(seconds[torch.float32]) / max(min(seconds[torch.bfloat16]), 1e-9)


def _read_gain(key: dict[str, str]) -> float | None:
    try:
        kept: dict[str, Any] = json.loads(cache_file().read_text(encoding="utf-8"))
        return float(kept["gain"]) if all(kept[name] == value for name, value in key.items()) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
