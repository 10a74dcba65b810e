"""Batches in parts: order, sizes, threads, and the same features on one core as on several."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from pipeline.core import threads
from pipeline.core.records import Frame
from pipeline.core.threads import ThreadPools
from stages.extract import ExtractConfig, Extractor
from stages.extract.parts import Parts


def test_parts_are_in_order_and_one_part_stays_in_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_set", [ThreadPools(torch=4, images=2)])
    parts = Parts()
    seen: list[tuple[str, int]] = []

    def work(part: slice) -> tuple[int, int]:
        seen.append((threading.current_thread().name, torch.get_num_threads()))
        return part.start, part.stop

    assert parts(work, 5) == [(0, 2), (2, 4), (4, 6)]
    assert {name.rpartition("_")[0] for name, _ in seen} == {"extract"}
    assert {count for _, count in seen} == {2}
    seen.clear()
    assert parts(work, 2) == [(0, 2)]
    assert seen == [(threading.current_thread().name, torch.get_num_threads())]
    parts.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("extract_")]


def test_an_error_of_a_part_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_set", [ThreadPools(torch=2, images=2)])
    parts = Parts()

    def work(part: slice) -> int:
        if part.start == 2:
            raise torch.OutOfMemoryError("no room")
        return int(part.start)

    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        parts(work, 6)
    parts.close()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    rng = np.random.default_rng(0)
    frames = [Frame(rng.integers(0, 256, (96, 128, 3), np.uint8), i, i / 24) for i in range(5)]
    config = ExtractConfig(
        backbone="vit_tiny_patch16_224", weights="random", short_side=96, precision=precision, device="cpu"
    )
    found = []
    for images in (1, 2):
        monkeypatch.setattr(threads, "_set", [ThreadPools(torch=images, images=images)])
        threads.own_torch_threads(1)
        packets = list(Extractor(config)(iter(frames)))
        found.append([packet.features for packet in packets])
    for one, two in zip(*found, strict=True):
        assert torch.equal(one.data, two.data)
        assert torch.equal(one.saliency, two.saliency)
