from __future__ import annotations

from itertools import pairwise

import numpy as np

from pipeline.prompts.regions import connected_to, nested_regions, without_specks


def test_regions_are_nested_connected_to_their_seed_and_stay_in_their_room() -> None:
    field = np.tile(np.arange(8, dtype=np.float32), (6, 1)).ravel()
    room = np.ones((6, 8), np.bool_)
    room[:, 4] = False
    regions = nested_regions(field, room.ravel(), (6, 8), seeds=[7])
    assert regions
    for region in regions:
        assert region[7]
        assert not region.reshape(6, 8)[:, :5].any()
    for small, large in pairwise(regions):
        assert not (small & ~large).any()


def test_every_seed_is_in_every_region_and_parts_without_one_are_left_out() -> None:
    field = np.array([9, 8, 0, 7, 6, 0, 9, 9], np.float32)
    regions = nested_regions(field, np.ones(8, np.bool_), (1, 8), seeds=[0, 3], largest_share=1.0)
    for region in regions:
        assert region[0]
        assert region[3]
        assert not region[6:].any() or region[5]


def test_parts_are_kept_by_their_cells_and_by_their_size() -> None:
    region = np.array([1, 1, 1, 1, 0, 1, 0, 0, 1, 1], np.bool_)
    assert connected_to(region, [8], (1, 10)).tolist() == [False] * 8 + [True] * 2
    assert np.flatnonzero(without_specks(region, (1, 10), share=0.4)).tolist() == [0, 1, 2, 3, 8, 9]
