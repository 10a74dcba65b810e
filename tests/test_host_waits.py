"""No stage makes the host wait for the card in a frame, but for the copies of the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.core import device_stream, host_copy
from stages.extract import model
from tests.counted_card import counted_card, on_card
from tests.fake_cuda import CUDA
from tests.host_waits import CASES, FRAMES, Case, Place

PLANTED: dict[str, Callable[[Tensor], object]] = {
    "_local_scalar_dense": lambda card: card.sum().item(),
    "copy to the host": lambda card: card.cpu(),
    "copy to the card": lambda card: card + torch.tensor([1.0, 2.0, 3.0], device=card.device),
    "index on the host": lambda card: card[torch.tensor([0, 2])],
    "mask in brackets": lambda card: card[card > 0],
    "nonzero": lambda card: card.nonzero(),
    "_linalg_eigh": lambda card: torch.linalg.eigh(card[:, None] * card),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_wait_is_counted(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted_card(monkeypatch) as counts:
        PLANTED[what](on_card(torch.tensor([1.0, -2.0, 3.0])))
        assert [name.split(" at ")[0] for name in counts.waits] == [what]
        counts.clear()
        assert bool(on_card(torch.ones(2)).all()) is True
        assert sum(counts.waits.values()) == 1


def test_mixed_devices_raise_and_values_are_real(monkeypatch: pytest.MonkeyPatch) -> None:
    with counted_card(monkeypatch) as counts:
        card = on_card(torch.arange(6.0).view(2, 3))
        with pytest.raises(RuntimeError, match="two devices"):
            _ = card + torch.ones(2, 3)
        card[:, 1] = 7
        card[card.new_tensor([1]).long(), 0] = 9
        assert card.is_cuda
        counts.clear()
        (found,) = host_copy.fetch(device_stream.streams_of(CUDA), [card * 2])
        assert found.tolist() == [[0, 14, 4], [18, 14, 10]]
        sent = host_copy.send(device_stream.streams_of(CUDA), np.ones(2, np.float32))
        assert sent.device == CUDA
        assert (counts.waits, counts.downloads, counts.uploads, counts.events) == ({}, 1, 1, 1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_no_stage_waits_in_a_frame(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "pick_device", lambda name: CUDA)
    with counted_card(monkeypatch) as counts:
        step = case.make(Place(CUDA, on_card, "fp32", "tiled", tmp_path))
        for number in range(case.warm):
            step(number)
        counts.clear()
        for number in range(case.warm, case.warm + FRAMES):
            step(number)
        assert counts.waits == {}
        assert (counts.downloads, counts.uploads, counts.events) == (case.downloads, case.uploads, case.events)
