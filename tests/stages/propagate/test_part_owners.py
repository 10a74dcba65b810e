"""Which object each part is of, counted frame by frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.core.state import load_state, save_state
from stages.propagate.part_owners import SAMPLE_PX, PartOwners


def frames(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(7)
    return [
        (random.integers(0, 4 + 3 * index, (40, 64), np.uint8), random.integers(0, 3 + index, (40, 64), np.uint8))
        for index in range(count)
    ]


def test_owner_is_the_object_that_covers_most_of_the_part_over_all_frames() -> None:
    """Against the definition, evaluated on all frames at once."""
    owners, seen = PartOwners(), frames(5)
    for parts, objects in seen:
        owners.add(np.where(parts == 2, 2 * (objects == 1), parts).astype(np.uint8), objects)
    parts = np.stack([np.where(p == 2, 2 * (o == 1), p) for p, o in seen])[:, ::SAMPLE_PX, ::SAMPLE_PX]
    objects = np.stack([o for _, o in seen])[:, ::SAMPLE_PX, ::SAMPLE_PX]
    entries = {entry["number"]: entry for entry in owners.report()}
    assert sorted(entries) == sorted(set(np.unique(parts).tolist()) - {0})
    for number, entry in entries.items():
        inside = objects[parts == number]
        shares = [float(np.mean(inside == identity)) for identity in range(1, 256)]
        assert entry["share"] == round(max(shares), 3)
        assert entry["object"] == (int(np.argmax(shares)) + 1 if max(shares) >= 0.5 else None)
    assert entries[2] == {"number": 2, "object": 1, "share": 1.0}


def test_parts_of_the_background_have_no_object() -> None:
    owners = PartOwners()
    owners.add(np.full((8, 8), 255, np.uint8), np.zeros((8, 8), np.uint8))
    assert owners.report() == [{"number": 255, "object": None, "share": 0.0}]


def test_counting_goes_on_after_a_restart(tmp_path: Path) -> None:
    whole, first, second = PartOwners(), PartOwners(), PartOwners()
    for place, frame in enumerate(frames(6)):
        whole.add(*frame)
        (first if place < 3 else second).add(*frame)
        if place == 2:
            save_state(tmp_path, "owners", first.state())
            second.restore(load_state(tmp_path, "owners"))
    assert second.report() == whole.report()
