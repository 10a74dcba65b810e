"""Co-segmentation with LiFT: evidence from the backbone's cells, outlines from LiFT's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from pipeline.core.config import load_config
from pipeline.core.records import Features, Packet
from stages.cosegment import CosegmentConfig, Cosegmenter
from tests.stages.cosegment.scenes import CELL, FAST, SIZE, moving_square

_CONFIG = load_config(CosegmentConfig, {**FAST, "refine": "none", "foreground_memory": 0.0}, origin="test")


def lifted(packets: Iterator[Packet], shift: int) -> Iterator[Packet]:
    """The same scene with cells of half the size, its object half a cell further right on LiFT's grid alone."""
    for packet in packets:
        coarse = packet.features
        assert coarse is not None
        fine = coarse.data.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
        data = torch.roll(fine, shift, dims=2)
        yield replace(packet, features=Features(data, coarse.grid.subdivided(2), before_lift=coarse))


def _foreground(packets: Iterator[Packet]) -> tuple[list[np.ndarray], Cosegmenter]:
    stage = Cosegmenter(_CONFIG)
    return [packet.parts.index_mask > 0 for packet in stage(packets) if packet.parts is not None], stage


def test_the_outline_lies_where_lifted_cells_see_it() -> None:
    plain, _ = _foreground(moving_square(8))
    shifted, _ = _foreground(lifted(moving_square(8), shift=1))
    for before, after in zip(plain, shifted, strict=True):
        moved = np.roll(before, CELL // 2, axis=1)
        assert np.count_nonzero(moved & after) > 0.95 * np.count_nonzero(moved | after)


def test_what_is_learned_does_not_depend_on_lift() -> None:
    _, plain = _foreground(moving_square(8))
    _, finer = _foreground(lifted(moving_square(8), shift=3))
    one, other = plain.state()["codebook"], finer.state()["codebook"]
    np.testing.assert_array_equal(one["parts"], other["parts"])
    np.testing.assert_array_equal(one["discriminant"]["weights"], other["discriminant"]["weights"])


def test_the_foreground_and_the_parts_of_cells_stay_on_the_grid_of_the_backbone() -> None:
    for packet in Cosegmenter(_CONFIG)(lifted(moving_square(6), shift=0)):
        assert packet.parts is not None
        assert packet.parts.foreground.shape == SIZE
        assert packet.parts.part_ids is not None
        assert packet.parts.part_ids.shape == SIZE
