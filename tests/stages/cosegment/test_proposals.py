"""Proposals of objects: grouping of cells, rounds of foreground, motion of cells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

from pipeline.core.arrays import normalize_rows
from pipeline.core.grid import PatchGrid
from stages.cosegment import CosegmentConfig
from stages.cosegment.codebook import fit_codebook
from stages.cosegment.grouping import group_cells
from stages.cosegment.observation import Observation
from stages.cosegment.proposals import FurtherRounds, Proposer, propose_objects, recent_motion

HW = (12, 16)
NOTHING = np.zeros(HW[0] * HW[1], bool)
GRID = PatchGrid.from_input((96, 128), (96, 128), patch_px=8, stride_px=8)
LOOKS = np.linalg.qr(np.random.default_rng(5).standard_normal((24, 24)))[0]


def frame(index: int, *, moving: bool = True) -> Observation:
    """A salient square, a less salient one that moves the other way, and a background of three looks."""
    rng = np.random.default_rng(index)
    looks = 3 + rng.integers(0, 3, HW)
    saliency, motion = np.full(HW, 0.2), np.zeros(HW)
    flow = np.zeros((96, 128, 2), np.float32)
    for look, top, left, salience, speed in ((1, 2, 2 + index % 3, 9.0, -3.0), (2, 7, 12 - index % 3, 4.0, 3.0)):
        looks[top : top + 4, left : left + 4] = look
        saliency[top : top + 4, left : left + 4] = salience
        if moving:
            motion[top : top + 4, left : left + 4] = 3.0
            flow[8 * top : 8 * top + 32, 8 * left : 8 * left + 32, 0] = speed
    rows = LOOKS[looks.ravel()] + 0.05 * rng.standard_normal((looks.size, 24))
    return Observation(
        normalize_rows(rows.astype(np.float32)),
        saliency.ravel().astype(np.float32),
        motion.ravel().astype(np.float32),
        np.zeros((96, 128), np.uint8),
        flow,
    )


def test_grouping_is_average_linkage_where_all_cells_touch() -> None:
    """Four cells in a square are all neighbors, so scipy's average linkage of squared distances must agree."""
    positions = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    for seed in range(20):
        vectors = np.random.default_rng(seed).standard_normal((4, 3)).astype(np.float32)
        tree = linkage(vectors, "average", metric="sqeuclidean")
        for limit in (1.0, 3.0, 6.0):
            want = fcluster(tree, limit, "distance")
            got = group_cells(vectors, positions, limit)
            assert len(np.unique(got)) == len(np.unique(want))
            assert ((got[:, None] == got) == (want[:, None] == want)).all()


def test_equal_cells_that_do_not_touch_are_two_groups() -> None:
    positions = np.array([[0, 0], [0, 1], [0, 3], [0, 4]])
    assert group_cells(np.zeros((4, 2), np.float32), positions, 1.0).tolist() == [0, 0, 1, 1]


def test_both_objects_are_found_though_one_is_far_less_salient() -> None:
    window = [frame(index) for index in range(8)]
    rounds = FurtherRounds.fit(window, [NOTHING] * len(window), HW)
    regions, _ = propose_objects(rounds, window, 5, GRID, NOTHING)
    first, second = regions[2:6, 4:8], regions[7:11, 10:14]
    assert len(np.unique(regions)) == 3
    assert len(np.unique(first)) == len(np.unique(second)) == 1
    assert first[0, 0] != second[0, 0]


def test_without_anything_salient_nothing_is_proposed() -> None:
    flat = [replace(frame(index, moving=False), saliency=np.ones(192, np.float32)) for index in range(4)]
    rounds = FurtherRounds.fit(flat, [NOTHING] * 4, HW)
    regions, dropped = propose_objects(rounds, flat, 2, GRID, NOTHING)
    assert not regions.any()
    assert dropped == 0


def test_what_touches_and_looks_alike_is_split_by_its_motion() -> None:
    window = []
    for index in range(6):
        seen = frame(index)
        looks = np.full(HW, 3)
        looks[4:8, 4:12] = 1
        salient = np.where(looks == 1, 9.0, 0.2).ravel().astype(np.float32)
        flow = np.zeros((96, 128, 2), np.float32)
        flow[:, :64, 0], flow[:, 64:, 0] = -6.0, 6.0
        noise = 0.05 * np.random.default_rng(index).standard_normal((192, 24))
        rows = normalize_rows((LOOKS[looks.ravel()] + noise).astype(np.float32))
        moving = np.where(looks == 1, 4.0, 0.0).ravel().astype(np.float32)
        window.append(replace(seen, rows=rows, saliency=salient, motion_px=moving, flow=flow))
    regions, _ = propose_objects(FurtherRounds.fit(window, [NOTHING] * len(window), HW), window, 5, GRID, NOTHING)
    assert 0 < regions[5, 5] != regions[5, 10] > 0
    still = [replace(seen, flow=np.zeros_like(seen.flow)) for seen in window]
    regions, _ = propose_objects(FurtherRounds.fit(still, [NOTHING] * len(still), HW), still, 5, GRID, NOTHING)
    assert regions[5, 5] == regions[5, 10] > 0


def test_motion_of_a_first_frame_is_that_of_the_frames_after_it() -> None:
    """A uniform drift: known from the frames before where there are some, from those after otherwise."""
    flow = np.zeros((96, 128, 2), np.float32)
    flow[..., 0] = -2.0
    window = [replace(frame(index), flow=flow if index else None) for index in range(6)]
    early, late = recent_motion(window, 0, GRID), recent_motion(window, 5, GRID)
    inner = np.zeros(HW, bool)
    inner[:, 2:-2] = True
    np.testing.assert_allclose(late[inner.ravel()], [[6.0, 0.0]] * int(inner.sum()), atol=1e-4)
    np.testing.assert_allclose(early[inner.ravel()], late[inner.ravel()], atol=1e-4)
    assert not recent_motion(window[:1], 0, GRID).any()


def test_proposals_come_at_the_first_and_every_nth_frame_of_a_shot() -> None:
    proposer, never = Proposer(3), Proposer(0)
    window = [frame(index) for index in range(4)]
    codebook, known = fit_codebook(window, CosegmentConfig().fit_options()), NOTHING.reshape(HW)
    due = [proposer.propose(window, place, GRID, codebook, known) is not None for place in range(4)]
    for index in range(4, 8):
        window = [*window[1:], frame(index)]
        due.append(proposer.propose(window, 3, GRID, codebook, known) is not None)
    assert due == [True, False, False, True, False, False, True, False]
    proposer.start_shot()
    assert proposer.propose(window, 0, GRID, codebook, known) is not None
    assert proposer.report()["frames"] == 4
    assert never.propose(window, 0, GRID, codebook, known) is None


def test_the_foreground_known_before_is_proposed_and_further_rounds_look_beyond_it() -> None:
    window = [frame(index) for index in range(8)]
    known = [np.zeros(HW, bool) for _ in window]
    for index, cells in enumerate(known):
        cells[2:6, 2 + index % 3 : 6 + index % 3] = True
    rounds = FurtherRounds.fit(window, [cells.ravel() for cells in known], HW)
    square = np.zeros(HW, bool)
    square[7:11, 10:14] = True
    beyond = rounds.foreground(window[5].rows).reshape(HW)
    assert (beyond & square).sum() > 12
    assert not (beyond & known[5]).any()
    regions, _ = propose_objects(rounds, window, 5, GRID, known[5].ravel())
    assert len(np.unique(regions[known[5]])) == 1
    assert regions[3, 5] != regions[8, 11] > 0
