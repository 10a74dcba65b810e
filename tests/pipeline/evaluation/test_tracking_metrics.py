from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.core.arrays import box_iou
from pipeline.evaluation.tracking_counts import TrackingScores, total
from pipeline.evaluation.tracking_metrics import (
    Pairing,
    clear,
    hota,
    identity,
    pair,
    score,
    score_sequences,
)
from pipeline.formats.boxes import BoxTable
from pipeline.formats.mot import read_table


def _case(truth: list[str], tracks: list[str], similarity: dict[tuple[int, int], str], frames: int = 5) -> Pairing:
    """A pairing from strings with one digit a frame: who is present, and which pairs overlap wholly."""
    gt_ids, track_ids, values = [], [], []
    for t in range(frames):
        g = np.array([n for n, s in enumerate(truth) if s[t] == "1"], np.int64)
        k = np.array([n for n, s in enumerate(tracks) if s[t] == "1"], np.int64)
        gt_ids.append(g)
        track_ids.append(k)
        values.append(np.array([[float(similarity.get((a, b), "0" * frames)[t]) for b in k] for a in g]))
    shaped = tuple(v.reshape(len(g), len(k)) for v, g, k in zip(values, gt_ids, track_ids, strict=True))
    return Pairing(tuple(gt_ids), tuple(track_ids), shaped, len(truth), len(tracks))


CASE_A = (["11111", "11100"], ["11110", "11111"], {(0, 1): "00011", (1, 0): "11000"})
CASE_B = (CASE_A[0], CASE_A[1], CASE_A[2] | {(0, 0): "00100", (1, 1): "01000"})
CASE_C = (
    ["11011", "11111"],
    ["11000", "00111", "00001", "00111", "11000"],
    {(0, 0): "11000", (0, 3): "00011", (1, 1): "00110", (1, 2): "00001", (1, 4): "11000"},
)


@pytest.mark.parametrize(
    ("case", "counts", "mota", "id_counts", "idf1"),
    [
        (CASE_A, (4, 4, 5, 0), -1 / 8, (4, 4, 5), 8 / 17),
        (CASE_B, (5, 3, 4, 1), 0.0, (4, 4, 5), 8 / 17),
        (CASE_C, (9, 0, 2, 3), 4 / 9, (4, 5, 7), 8 / 20),
    ],
)
def test_published_cases_of_clear_and_idf1(
    case: tuple[list[str], list[str], dict[tuple[int, int], str]],
    counts: tuple[int, int, int, int],
    mota: float,
    id_counts: tuple[int, int, int],
    idf1: float,
) -> None:
    pairing = _case(*case)
    found, ids = clear(pairing), identity(pairing)
    assert (found.tp, found.fn, found.fp, found.id_switches) == counts
    assert found.mota == pytest.approx(mota)
    assert (ids.idtp, ids.idfn, ids.idfp) == id_counts
    assert ids.idf1 == pytest.approx(idf1)


def _boxes(frames: Sequence[int], ids: Sequence[int], lefts: Sequence[float]) -> BoxTable:
    return BoxTable.make(frames, ids, [[x, 0, x + 10, 10] for x in lefts])


def test_perfect_tracks_score_one_hundred_everywhere() -> None:
    gt = _boxes([0, 0, 1, 1], [1, 2, 1, 2], [0, 50, 1, 51])
    renamed = BoxTable.make(gt.frames, gt.ids + 70, gt.xyxy)
    row = score(gt, renamed).as_dict()
    assert all(row[name] == pytest.approx(100) for name in ("HOTA", "DetA", "AssA", "LocA", "MOTA", "IDF1"))
    assert row["IDSW"] == row["Frag"] == row["FN"] == row["FP"] == 0


def test_hota_of_a_track_cut_in_two_halves_by_hand() -> None:
    # Detection is perfect; every box belongs to a pair with 2 matches of 4 + 2 - 2 boxes, so AssA is one half.
    gt = _boxes([0, 1, 2, 3], [1] * 4, [0] * 4)
    tracks = _boxes([0, 1, 2, 3], [1, 1, 2, 2], [0] * 4)
    found = score(gt, tracks)
    assert found.hota.hota == pytest.approx(np.sqrt(0.5))
    assert found.hota.ass_a_mean == pytest.approx(0.5)
    assert found.clear.id_switches == 1
    assert found.identity.idf1 == pytest.approx(0.5)


def test_hota_counts_a_box_only_up_to_its_overlap() -> None:
    # Shifted by a third of its width: IoU is exactly one half, which 10 of the 19 thresholds accept.
    found = hota(pair(_boxes([0], [1], [0]), _boxes([0], [1], [10 / 3])))
    assert found.tp.tolist() == [1.0] * 10 + [0.0] * 9
    assert found.hota == pytest.approx(10 / 19)


def test_a_switch_is_counted_against_the_last_match_however_long_ago() -> None:
    gt = _boxes([0, 1, 2, 3, 4], [1] * 5, [0] * 5)
    tracks = _boxes([0, 4], [1, 2], [0, 0])
    found = clear(pair(gt, tracks))
    assert (found.id_switches, found.tp, found.fn) == (1, 2, 3)


def test_a_frame_without_tracks_keeps_the_memory_and_breaks_no_track() -> None:
    gt = _boxes([0, 1, 2], [1] * 3, [0] * 3)
    assert clear(pair(gt, _boxes([0, 2], [1, 1], [0, 0]))).fragmentations == 0
    other = _boxes([0, 1, 2], [1, 9, 1], [0, 500, 0])
    assert clear(pair(gt, other)).fragmentations == 1


def test_mostly_tracked_is_more_than_four_fifths_and_mostly_lost_less_than_one() -> None:
    gt = _boxes(list(range(5)) * 3, [1] * 5 + [2] * 5 + [3] * 5, [0] * 5 + [100] * 5 + [200] * 5)
    tracks = _boxes([0, 1, 2, 3, 4, 0, 1, 2, 3, 0], [1] * 5 + [2] * 4 + [3], [0] * 5 + [100] * 4 + [200])
    found = clear(pair(gt, tracks))
    assert (found.mostly_tracked, found.partly_tracked, found.mostly_lost) == (1, 2, 0)


def test_without_tracks_everything_is_missed_and_without_truth_everything_is_false() -> None:
    boxes = _boxes([0, 1], [1, 2], [0, 0])
    missed, false = score(boxes, BoxTable.empty()), score(BoxTable.empty(), boxes)
    assert (missed.clear.fn, missed.clear.fp, missed.identity.idfn, missed.clear.mostly_lost) == (2, 0, 2, 2)
    assert missed.hota.fn.tolist() == [2.0] * 19
    assert missed.hota.loc_a == 1.0
    assert (false.clear.fn, false.clear.fp, false.identity.idfp) == (0, 2, 2)
    assert false.hota.fp.tolist() == [2.0] * 19
    empty = score(BoxTable.empty(), BoxTable.empty(), 4)
    assert empty.as_dict()["HOTA"] == 0.0


def test_sequences_are_combined_by_their_counts_and_not_by_their_ratios() -> None:
    long = _boxes(list(range(9)), [1] * 9, [0] * 9)
    short = _boxes([0], [1], [0])
    found = score_sequences({"long": (long, long), "short": (short, BoxTable.empty())})
    assert found["COMBINED"].clear.mota == pytest.approx(0.9)
    assert found["COMBINED"].identity.idtp == 9
    assert found["COMBINED"].hota.det_a == pytest.approx(0.9)
    with pytest.raises(ValueError, match="no scores"):
        total([])


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], 1.0),
        ([0, 0, 2, 2], [2, 0, 4, 2], 0.0),
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7),
        ([0, 0, 0, 0], [0, 0, 0, 0], 0.0),
        ([0, 0, 2, 2], [3, 0, 5, 2], 0.0),
    ],
)
def test_overlap_of_two_boxes(a: list[float], b: list[float], expected: float) -> None:
    assert box_iou([a], [b])[0, 0] == pytest.approx(expected)


def test_overlap_with_the_corners_inside_the_box() -> None:
    assert box_iou([[0, 0, 9, 9]], [[5, 0, 14, 9]], pixel_extent=1)[0, 0] == pytest.approx(50 / 150)
    assert box_iou(np.zeros((0, 4)), [[0, 0, 1, 1]]).shape == (0, 1)


@pytest.mark.parametrize(
    ("name", "mota", "idf1", "hota_percent", "switches"),
    [("TUD-Campus", 52.646, 55.766, 39.140, 7), ("TUD-Stadtmitte", 56.401, 64.462, 39.785, 7)],
)
def test_known_scores_of_real_results(
    shared_dir: Path, name: str, mota: float, idf1: float, hota_percent: float, switches: int
) -> None:
    folder = shared_dir / "data" / "mot_text"
    gt = read_table(folder / name / "gt" / "gt.txt", kind="gt")
    row = score(gt, read_table(folder / "results" / f"{name}.txt", kind="results")).as_dict()
    assert (row["MOTA"], row["IDF1"], row["HOTA"]) == pytest.approx((mota, idf1, hota_percent), abs=5e-4)
    assert row["IDSW"] == switches


def _random_tables(seed: int) -> tuple[BoxTable, BoxTable]:
    """Crowded tracks with misses, swaps, false alarms and whole frames without truth or without tracks."""
    rng = np.random.default_rng(seed)
    num_gt, num_tracks, frames = int(rng.integers(1, 8)), int(rng.integers(0, 9)), 40
    start = rng.uniform(0, 60, (num_gt, 2))
    gt: list[tuple[int, int, npt.NDArray[np.float64]]] = []
    tracks: list[tuple[int, int, npt.NDArray[np.float64]]] = []
    for t in range(frames):
        for g in range(num_gt):
            if rng.random() < 0.7 and t not in (5, 6):
                gt.append((t, 3 * g, start[g] + rng.normal(0, 2, 2) + t / 2))
        for k in range(num_tracks):
            if rng.random() < 0.7 and t not in (11, 12):
                follows = (k + (t > 20) * int(rng.integers(0, 2))) % num_gt
                tracks.append((t, k, start[follows] + rng.normal(0, 4, 2) + t / 2))
    return _table(gt), _table(tracks)


def _table(rows: list[tuple[int, int, npt.NDArray[np.float64]]]) -> BoxTable:
    boxes = np.array([[*xy, *(xy + 20)] for _, _, xy in rows]).reshape(-1, 4)
    return BoxTable.make([r[0] for r in rows], [r[1] for r in rows], boxes)


def _trackeval(pairing: Pairing) -> dict[str, Any]:
    import trackeval

    trackeval._timing.DO_TIMING = False
    data = {
        "num_tracker_dets": pairing.num_tracked,
        "num_gt_dets": pairing.num_gt,
        "num_gt_ids": pairing.num_gt_ids,
        "num_tracker_ids": pairing.num_track_ids,
        "gt_ids": pairing.gt_ids,
        "tracker_ids": pairing.track_ids,
        "similarity_scores": pairing.similarity,
        "num_timesteps": len(pairing.gt_ids),
    }
    quiet = {"PRINT_CONFIG": False}
    metrics = (trackeval.metrics.CLEAR(quiet), trackeval.metrics.Identity(quiet), trackeval.metrics.HOTA())
    found: dict[str, Any] = {}
    for metric in metrics:
        found |= metric.eval_sequence(data)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_all_three_families_equal_trackeval_on_random_tracks(seed: int) -> None:
    pytest.importorskip("trackeval", reason="needs the extra 'bench'")
    gt, tracks = _random_tables(seed)
    expected, found = _trackeval(pair(gt, tracks, 42)), score(gt, tracks, 42)
    c, i, h = found.clear, found.identity, found.hota
    assert (c.tp, c.fn, c.fp, c.id_switches) == tuple(expected[k] for k in ("CLR_TP", "CLR_FN", "CLR_FP", "IDSW"))
    assert (c.mostly_tracked, c.partly_tracked, c.mostly_lost) == tuple(expected[k] for k in ("MT", "PT", "ML"))
    assert (c.fragmentations, i.idtp, i.idfn, i.idfp) == tuple(
        expected[k] for k in ("Frag", "IDTP", "IDFN", "IDFP")
    )
    assert (c.mota, c.motp, i.idf1) == pytest.approx((expected["MOTA"], expected["MOTP"], expected["IDF1"]))
    assert h.hota_curve == pytest.approx(expected["HOTA"])
    assert h.ass_a_curve == pytest.approx(expected["AssA"])
    assert h.loc_a == pytest.approx(expected["LocA"].mean())


# What TrackEval 1.3.0 gives for the tables above, so that the equality is tested without it too.
RECORDED = {
    1: (41, 8, 25, 0, 28, 0.194691, 0.157572, 0.689745),
    2: (15, 5, 10, 0, 10, 0.111289, 0.117926, 0.658295),
    3: (0, 0, 0, 0, 0, 0.0, 0.0, 1.0),
    5: (53, 20, 33, 0, 35, 0.167966, 0.134678, 0.695785),
    8: (17, 3, 9, 0, 15, 0.121142, 0.148878, 0.681429),
}


@pytest.mark.parametrize("seed", RECORDED)
def test_recorded_scores_of_trackeval_on_random_tracks(seed: int) -> None:
    gt, tracks = _random_tables(seed)
    found: TrackingScores = score(gt, tracks, 42)
    c, i, h = found.clear, found.identity, found.hota
    got = (c.tp, c.id_switches, c.fragmentations, c.mostly_tracked, i.idtp, h.hota, h.ass_a_mean, h.loc_a)
    assert got == pytest.approx(RECORDED[seed], abs=1e-6)
