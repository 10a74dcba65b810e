"""What the trainings share: the file that an interrupted one goes on from, and the learning rate's schedule."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.core.errors import OutputError
from pipeline.core.files import write_bytes_whole


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a training's state, complete or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes_whole(path, buffer.getvalue())


def load_checkpoint(path: Path, keys: Sequence[str], device: torch.device | str) -> dict[str, Any]:
    """Read a training's state.

    Args:
        path: From :func:`save_checkpoint`.
        keys: What it must hold.
        device: Where its tensors go.

    Raises:
        OutputError: The file cannot be read or lacks a key.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        if missing := [key for key in keys if key not in state]:
            raise KeyError(missing[0])
    except (RuntimeError, OSError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise OutputError(f"{path}: cannot be read as a checkpoint; delete it or use --restart") from error
    return state


def refuse_other_training(path: Path, different: Sequence[str]) -> None:
    """Refuse a checkpoint of another training.

    Args:
        path: The checkpoint.
        different: Names of what differs from this training; nothing happens where there is none.

    Raises:
        OutputError: Something differs.
    """
    if different:
        raise OutputError(
            f"{path}: was made with other {', '.join(different)}; use --restart to start over, or another --output"
        )


def half_cosine_rate(highest: float, step: int, total_steps: int, warm_up_steps: int) -> float:
    """A learning rate that rises linearly over the first steps and falls to zero along half a cosine.

    >>> [round(half_cosine_rate(1.0, step, 100, 2), 2) for step in (0, 1, 50, 99)]
    [0.5, 1.0, 0.5, 0.0]
    """
    warm = min(1.0, (step + 1) / warm_up_steps)
    return warm * highest * (1 + math.cos(math.pi * step / total_steps)) / 2
