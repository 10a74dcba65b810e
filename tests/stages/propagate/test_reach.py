"""How far labels may be from where an object was, against a naive loop over cells and on a made clip."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.core.records import Features, Frame, LabelMap, Packet, PatchGrid
from stages.propagate import PropagateConfig, Propagator
from stages.propagate.reach import SEEN, STEP_PER_SIZE, drop_out_of_reach

HEIGHT, WIDTH, PX = 9, 16, 4


def naive(labels: Tensor, before: Tensor, step: float, parts: int, frames: int) -> Tensor:
    out = labels.clone()
    for k in range(1, len(labels)):
        was = before[k].view(HEIGHT, parts, WIDTH, parts).mean((1, 3))
        seen = (was > SEEN).nonzero().tolist()
        reach = round(frames * (step + STEP_PER_SIZE * float(was.sum()) ** 0.5))
        for row in range(HEIGHT * parts):
            for column in range(WIDTH * parts):
                cell = row // parts, column // parts
                far = all(max(abs(cell[0] - r), abs(cell[1] - c)) > reach for r, c in seen)
                if seen and far:
                    out[0, row, column] += out[k, row, column]
                    out[k, row, column] = 0
    return out


def random_labels(parts: int, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.softmax(4 * torch.randn(4, HEIGHT * parts, WIDTH * parts), 0)


def test_equals_a_loop_over_cells() -> None:
    for parts, frames, step in ((1, 1, 1.0), (2, 1, 2.0), (2, 3, 0.7)):
        labels, before = random_labels(parts, 0), random_labels(parts, 1)
        before[1, :, : WIDTH * parts - 3] = 0.0  # seen in a corner alone
        before[2] = 0.0  # not seen: may come back anywhere
        ours = drop_out_of_reach(labels, before, step_cells=step, parts=parts, frames=frames)
        torch.testing.assert_close(ours, naive(labels, before, step, parts, frames))
        torch.testing.assert_close(ours.sum(0), labels.sum(0))


def test_background_alone_stays() -> None:
    labels = torch.ones(1, HEIGHT, WIDTH)
    assert torch.equal(drop_out_of_reach(labels, labels, step_cells=1, parts=1), labels)


GRID = PatchGrid((HEIGHT * PX, WIDTH * PX), (HEIGHT, WIDTH), (PX, PX), ((PX - 1) / 2,) * 2)


def scene(index: int, *, column: int | None, twin: bool) -> Packet:
    """Object 1 of 2 x 2 cells at a column, None for none, one that looks the same in a far corner,
    and object 2, which stays where it is."""
    data = torch.zeros(3, HEIGHT, WIDTH)
    data[0] = 1
    spots = [(6, 13)] if twin else []
    if column is not None:
        spots.append((1, column))
    for row, left in spots:
        data[:, row : row + 2, left : left + 2] = torch.tensor([0.0, 1.0, 0.0])[:, None, None]
    data[:, 6:8, 1:3] = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
    image = np.zeros((HEIGHT * PX, WIDTH * PX, 3), np.uint8)
    return Packet(Frame(image, index, index / 25), Features(data, GRID))


def propagate(packets: list[Packet], step: float | None, **settings: Any) -> list[LabelMap]:
    shared = {
        "max_step_cells": step,
        "radius_cells": 0,
        "refine": {"enabled": False},
        "top_k": 1,
        "keep_ties": False,
    }
    config = PropagateConfig.model_validate(shared | settings)
    mask = np.zeros((HEIGHT * PX, WIDTH * PX), np.uint8)
    mask[PX : 3 * PX, PX : 3 * PX] = 1
    mask[6 * PX : 8 * PX, PX : 3 * PX] = 2
    propagator = Propagator(config, masks={0: mask})
    return [packet.labels for packet in propagator(packets) if packet.labels is not None]


def test_a_twin_far_away_gets_no_label_and_what_left_comes_back_anywhere() -> None:
    columns = [1, 2, 3, None, None, 9, 9]
    packets = [scene(i, column=c, twin=i in (1, 2)) for i, c in enumerate(columns)]
    free = [labels.index_mask == 1 for labels in propagate(packets, None)]
    bound = [labels.index_mask == 1 for labels in propagate(packets, 2)]
    twin = np.s_[6 * PX : 8 * PX, 13 * PX : 15 * PX]
    assert free[1][twin].mean() > 0.5
    assert not bound[1][twin].any()
    assert not bound[2][twin].any()
    assert bound[2][PX : 3 * PX, 3 * PX : 5 * PX].mean() > 0.5
    assert not bound[3].any()
    assert not bound[4].any()
    assert bound[5][PX : 3 * PX, 9 * PX : 11 * PX].mean() > 0.5


def test_an_object_that_left_is_not_believed_in_and_comes_back_with_its_confidence() -> None:
    columns = [1, 2, 3, *[None] * 8, 9, 9, 9]
    packets = [scene(i, column=c, twin=False) for i, c in enumerate(columns)]
    model = {"weight": 0.5, "mask_weight": 0.3}
    for step, weight in ((None, 1.0), (2, "confidence")):
        labels = propagate(packets, step, top_k=5, target_model=model, object_weight=weight)
        assert labels[2].confidence[0] > 0.5
        assert all(found.confidence[0] < 0.2 for found in labels[8:11])
        assert labels[-1].confidence[0] > 0.5
