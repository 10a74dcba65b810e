from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.core.errors import CheckpointError
from pipeline.core.grid import PatchGrid
from pipeline.core.records import Features, Frame, LabelMap, Packet, PartMap, Track
from pipeline.core.state import State, load_state, packet_from_state, packet_state, save_state


def through_disk(folder: Path, state: State) -> State:
    save_state(folder, "stage", state)
    return load_state(folder, "stage")


def test_values_come_back_as_they_were(tmp_path: Path) -> None:
    state: State = {
        "none": None,
        "number": 0.1 + 0.2,
        "nested": [{"flag": True, "text": "Übergröße"}, [1, 2]],
        "array": np.arange(6, dtype=np.float64).reshape(2, 3),
        "mask": np.array([[True, False]]),
        "tensor": torch.randn(2, 3, dtype=torch.float16),
        "empty": np.zeros((0, 4), np.float32),
    }
    back = through_disk(tmp_path, state)
    assert {key: back[key] for key in ("none", "number", "nested")} == {
        key: state[key] for key in ("none", "number", "nested")
    }
    for key in ("array", "mask", "empty"):
        np.testing.assert_array_equal(back[key], state[key])
        assert back[key].dtype == state[key].dtype
    assert torch.equal(back["tensor"], state["tensor"])


def test_a_tensor_keeps_its_order_in_memory(tmp_path: Path) -> None:
    channels_last = torch.randn(4, 5, 6).permute(1, 2, 0).contiguous().permute(2, 0, 1)
    back = through_disk(tmp_path, {"data": channels_last})["data"]
    assert torch.equal(back, channels_last)
    assert back.stride() == channels_last.stride()


def test_what_a_state_cannot_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state\.a\[1\]: cannot hold a PosixPath"):
        save_state(tmp_path, "stage", {"a": [1, Path("x")]})
    with pytest.raises(TypeError, match="keys must be text"):
        save_state(tmp_path, "stage", {"a": {1: 2}})


def test_a_damaged_state_is_an_error_that_names_it(tmp_path: Path) -> None:
    save_state(tmp_path, "stage", {"a": np.ones(3)})
    file = tmp_path / "stage.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="state of 'stage' cannot be read"):
        load_state(tmp_path, "stage")
    with pytest.raises(CheckpointError, match="state of 'other' cannot be read"):
        load_state(tmp_path, "other")


def test_a_packet_comes_back_whole(tmp_path: Path) -> None:
    grid = PatchGrid((6, 8), (3, 4), (2.0, 2.0), (1.0, 1.0))
    fine = PatchGrid((6, 8), (6, 8), (1.0, 1.0), (0.5, 0.5))
    coarse = Features(torch.randn(7, 3, 4), grid, torch.rand(3, 4), extra={"token@3": torch.randn(2, 3, 4)})
    packet = Packet(
        frame=Frame(np.arange(144, dtype=np.uint8).reshape(6, 8, 3), 5, 0.2),
        features=Features(torch.randn(7, 6, 8), fine, before_lift=coarse),
        parts=PartMap(np.ones((3, 4), np.uint8), 2, np.ones((6, 8), np.uint8), np.ones((3, 4), np.float32)),
        labels=LabelMap(torch.rand(2, 3, 4), (9,), np.zeros((6, 8), np.uint8), (0.5,)),
        tracks=(Track(3, (0.0, 1.0, 2.0, 3.0), 0.9, embedding=np.ones(2, np.float32)),),
        annotated=np.zeros((6, 8, 3), np.uint8),
    )
    back = packet_from_state(through_disk(tmp_path, packet_state(packet)))
    assert repr(back) == repr(packet)
    assert packet.features is not None
    assert back.features is not None
    assert torch.equal(back.features.data, packet.features.data)
    assert back.features.grid == fine
    assert back.features.coarse.grid == grid
    assert torch.equal(back.features.coarse.data, coarse.data)
    assert torch.equal(back.features.coarse.extra["token@3"], coarse.extra["token@3"])
    np.testing.assert_array_equal(back.frame.image, packet.frame.image)
    assert back.labels is not None
    assert back.labels.object_ids == (9,)
    assert packet_from_state(packet_state(Packet(packet.frame))).features is None
