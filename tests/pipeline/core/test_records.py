from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pipeline.core.records import Detections, Features, Frame, LabelMap, Packet, PartMap, PatchGrid, Track

GRID = PatchGrid((28, 42), (2, 3), (14.0, 14.0), (7.0, 7.0))


def test_repr_shows_shapes_and_no_pixels() -> None:
    frame = Frame(np.zeros((28, 42, 3), np.uint8), 4, 0.16)
    assert repr(frame) == "Frame(index=4, pts_seconds=0.160, image=28x42)"
    features = Features(torch.zeros(8, 2, 3), GRID)
    assert "data=8x2x3" in repr(features)
    assert len(repr(Packet(frame, features=features, annotated=frame.image))) < 300


def test_records_are_frozen() -> None:
    track = Track(1, (0.0, 0.0, 1.0, 1.0), 1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        track.score = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Frame(np.zeros((4, 4), np.uint8), 0, 0.0),
        lambda: Frame(np.zeros((4, 4, 3), np.float32), 0, 0.0),
        lambda: Frame(np.zeros((4, 4, 3), np.uint8), -1, 0.0),
        lambda: Features(torch.zeros(8, 3, 3), GRID),
        lambda: Features(torch.zeros(8, 2, 3), GRID, saliency=torch.zeros(3, 3)),
        lambda: PartMap(
            np.full((2, 3), 5, np.uint8), 4, np.zeros((28, 42), np.uint8), np.zeros((2, 3), np.float32)
        ),
        lambda: LabelMap(torch.zeros(2, 2, 3), (1, 2), np.zeros((28, 42), np.uint8)),
        lambda: LabelMap(torch.zeros(2, 2, 3), (1,), np.zeros((28, 42), np.uint8), (0.5, 0.5)),
        lambda: Track(0, (0.0, 0.0, 1.0, 1.0), 1.0),
        lambda: Track(1, (2.0, 0.0, 1.0, 1.0), 1.0),
        lambda: Detections(np.zeros((2, 4), np.float32), np.zeros(1, np.float32), ("", ""), np.zeros(2, np.int64)),
        lambda: PatchGrid((0, 1), (1, 1), (1.0, 1.0), (0.5, 0.5)),
        lambda: PatchGrid((1, 1), (1, 1), (0.0, 1.0), (0.5, 0.5)),
    ],
)
def test_records_refuse_shapes_that_do_not_fit(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="must|need|holds|for"):
        make()
