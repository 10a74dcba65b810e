"""The state of a stage as plain values, and how it is kept on disk without pickle.

A state is made of nested dicts with text keys and lists; its leaves are JSON values, NumPy arrays and tensors. On
disk it is two files: ``NAME.json`` with all but the arrays, and ``NAME.safetensors`` with the arrays. Values
come back bit for bit.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.core.errors import CheckpointError
from pipeline.core.files import sync_to_disk
from pipeline.core.grid import PatchGrid
from pipeline.core.records import Features, Frame, LabelMap, Packet, PartMap, Track

State = dict[str, Any]
"""Nested dicts and lists; leaves are None, bool, int, float, str, ``numpy.ndarray`` or ``torch.Tensor``."""

_REFERENCE = "$array"


def save_state(folder: Path, name: str, state: State) -> None:
    """Write a state as ``NAME.json`` and ``NAME.safetensors`` and wait until both are on the disk.

    Raises:
        TypeError: A value that a state cannot hold; the message says where it is.
        OSError: The folder cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    nest = _without_arrays(state, "", tensors)
    arrays, text = folder / f"{name}.safetensors", folder / f"{name}.json"
    try:
        save_file(tensors, arrays)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(str(error)) from error
    text.write_text(json.dumps(nest), encoding="utf-8")
    sync_to_disk(arrays)
    sync_to_disk(text)


def load_state(folder: Path, name: str) -> State:
    """Read what :func:`save_state` wrote; tensors are on the CPU.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    try:
        tensors = load_file(folder / f"{name}.safetensors")
        nest = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        state: State = _with_arrays(nest, tensors)
    except (OSError, ValueError, KeyError, SafetensorError, RecursionError) as error:
        raise CheckpointError(f"{folder}: the state of '{name}' cannot be read ({error})") from error
    return state


def _without_arrays(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        if not all(isinstance(key, str) and key != _REFERENCE for key in value):
            raise TypeError(f"state{where}: keys must be text, got {list(value)[:4]}")
        return {key: _without_arrays(inner, f"{where}.{key}", tensors) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_arrays(inner, f"{where}[{n}]", tensors) for n, inner in enumerate(value)]
    if isinstance(value, np.ndarray | Tensor):
        name = str(len(tensors))
        if isinstance(value, np.ndarray):
            tensors[name] = torch.from_numpy(np.array(value, order="C"))
            return {_REFERENCE: name, "order": None}
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {_REFERENCE: name, "order": _memory_order(value)}
    raise TypeError(f"state{where}: cannot hold a {type(value).__name__}")


def _with_arrays(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_with_arrays(inner, tensors) for inner in value]
    if not isinstance(value, dict):
        return value
    if _REFERENCE not in value:
        return {key: _with_arrays(inner, tensors) for key, inner in value.items()}
    tensor = tensors[value[_REFERENCE]]
    return tensor.numpy() if value["order"] is None else _laid_out(tensor, value["order"])


def _memory_order(tensor: Tensor) -> list[int]:
    """The dimensions from the outermost in memory to the innermost; sums depend on it in the last bit."""
    strides = tensor.stride()
    return sorted(range(tensor.ndim), key=lambda dim: -strides[dim])


def _laid_out(tensor: Tensor, order: list[int]) -> Tensor:
    """``tensor`` with its dimensions stored in memory in the given order."""
    if order == list(range(tensor.ndim)):
        return tensor
    inverse = [order.index(dim) for dim in range(tensor.ndim)]
    return tensor.permute(order).contiguous().permute(inverse)


def packet_state(packet: Packet) -> State:
    """A packet as a state, for stages that hold packets back."""
    frame, features, parts, labels = packet.frame, packet.features, packet.parts, packet.labels
    return {
        "frame": _fields(replace(frame, on_device=None)),
        "features": None if features is None else _features_state(features),
        "parts": None if parts is None else _fields(parts),
        "labels": None if labels is None else _fields(labels),
        "tracks": None if packet.tracks is None else [_fields(track) for track in packet.tracks],
        "annotated": packet.annotated,
    }


def packet_from_state(state: State, device: torch.device | str = "cpu") -> Packet:
    """The packet again, its tensors on ``device``."""
    labels, tracks = state["labels"], state["tracks"]
    return Packet(
        frame=Frame(**state["frame"]),
        features=None if state["features"] is None else _features_from_state(state["features"], device),
        parts=None if state["parts"] is None else PartMap(**state["parts"]),
        labels=None if labels is None else _labels_from_state(labels, device),
        tracks=None if tracks is None else tuple(_track_from_state(track) for track in tracks),
        annotated=state["annotated"],
    )


def grid_state(grid: PatchGrid) -> State:
    """A grid as a state."""
    return {name: list(values) for name, values in _fields(grid).items()}


def grid_from_state(state: State) -> PatchGrid:
    """The grid again."""
    return PatchGrid(**{name: tuple(values) for name, values in state.items()})


def _features_state(features: Features) -> State:
    values = {**_fields(features), "grid": grid_state(features.grid)}
    del values["host"]  # a second copy of the data
    if features.before_lift is not None:
        values["before_lift"] = _features_state(features.before_lift)
    return values


def _features_from_state(state: State, device: torch.device | str) -> Features:
    nested = ("grid", "extra", "before_lift")
    values = {name: _to(value, device) for name, value in state.items() if name not in nested}
    extra = {name: value.to(device) for name, value in state["extra"].items()}
    before = state.get("before_lift")
    return Features(
        **values,
        grid=grid_from_state(state["grid"]),
        extra=extra,
        before_lift=None if before is None else _features_from_state(before, device),
    )


def _labels_from_state(state: State, device: torch.device | str) -> LabelMap:
    tuples = {name: tuple(state[name]) for name in ("object_ids", "confidence")}
    return LabelMap(**{**state, **tuples, "probs": _to(state["probs"], device)})


def _track_from_state(state: State) -> Track:
    return Track(**{**state, "xyxy": tuple(state["xyxy"])})


def _fields(record: Any) -> State:
    return {name: getattr(record, name) for name in record.__slots__}


def _to(value: Any, device: torch.device | str) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
