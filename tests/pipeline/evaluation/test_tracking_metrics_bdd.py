from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.tracking_metrics import clear, pair
from pipeline.evaluation.tracking_metrics_bdd import match_most, official_counts, official_scores
from pipeline.evaluation.tracking_preprocess import bdd_categories
from pipeline.formats.bdd import read_videos
from pipeline.formats.boxes import BoxTable


def _boxes(frames: Sequence[int], ids: Sequence[int], lefts: Sequence[float], **more: Sequence[str]) -> BoxTable:
    return BoxTable.make(frames, ids, [[x, 0, x + 10, 10] for x in lefts], categories=more.get("categories"))


def test_official_scores_of_the_real_sample(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "bdd_sample"
    truth, results = (read_videos(folder / f"{name}.json") for name in ("labels", "predictions"))
    videos = {n: (bdd_categories(truth[n].table), bdd_categories(results[n].table)) for n in truth}
    rows = official_scores(videos).as_dict()
    overall, average = rows["OVERALL"], rows["AVERAGE"]
    assert [overall[k] for k in ("MOTA", "IDF1", "MOTP")] == pytest.approx([64.2007, 71.0107, 87.1614], abs=5e-5)
    counts = {k: v for k, v in overall.items() if isinstance(v, int)}
    assert counts == {"FP": 126, "FN": 942, "IDSw": 45, "MT": 62, "PT": 47, "ML": 33, "FM": 66}
    assert [average[k] for k in ("MOTA", "IDF1", "MOTP")] == pytest.approx([24.3242, 32.2478, 50.0129], abs=5e-5)
    assert rows["human"]["FN"] == rows["pedestrian"]["FN"] + rows["rider"]["FN"]


def test_as_many_pairs_as_possible_come_before_the_best_overlap() -> None:
    iou = np.array([[0.95, 0.55], [0.55, 0.0]])
    assert [x.tolist() for x in match_most(iou)] == [[0, 1], [1, 0]]
    assert [x.tolist() for x in match_most(np.array([[0.4, 0.3]]))] == [[], []]
    assert [len(x) for x in match_most(np.zeros((0, 3)))] == [0, 0]


def test_an_overlap_of_exactly_one_half_is_a_match() -> None:
    assert [x.tolist() for x in match_most(np.array([[0.5]]))] == [[0], [0]]


def test_a_lasting_pair_is_kept_though_another_track_fits_better() -> None:
    gt = _boxes([0, 1], [1, 1], [0, 0])
    tracks = _boxes([0, 1, 1], [1, 1, 2], [0, 3, 0])
    found = official_counts(pair(gt, tracks))
    assert (found.hits, found.switches, found.false_positives) == (2, 0, 1)


def test_an_object_remembers_its_track_over_frames_in_which_it_was_missed() -> None:
    # Frame 1 has another track far away, so the object is missed; in frame 2 both tracks fit it.
    gt = _boxes([0, 1, 2], [1, 1, 1], [0, 0, 0])
    tracks = _boxes([0, 1, 2, 2], [1, 2, 1, 2], [0, 500, 2, 0])
    pairing = pair(gt, tracks)
    assert official_counts(pairing).switches == 0
    assert clear(pairing).id_switches == 1


def test_four_fifths_are_mostly_tracked_and_gaps_are_counted_between_hits() -> None:
    gt = _boxes(range(5), [1] * 5, [0] * 5)
    tracks = _boxes([0, 2, 3, 4], [1] * 4, [0] * 4)
    found = official_counts(pair(gt, tracks))
    assert (found.mostly_tracked, found.fragmentations, found.misses) == (1, 1, 1)
    ends = official_counts(pair(gt, _boxes([1, 2], [1, 1], [0, 0])))
    assert (ends.fragmentations, ends.partly_tracked) == (0, 1)


def test_a_class_without_any_box_is_no_number_and_counts_as_zero_in_the_mean() -> None:
    nothing = official_counts(pair(BoxTable.empty(), BoxTable.empty()))
    assert math.isnan(nothing.mota)
    assert math.isnan(nothing.idf1)
    false = official_counts(pair(BoxTable.empty(), _boxes([0], [1], [0])))
    assert false.mota == -math.inf
    gt = _boxes([0], [1], [0], categories=["car"])
    rows = official_scores({"v": (gt, gt)}).as_dict()
    assert rows["car"]["MOTA"] == 100
    assert rows["AVERAGE"]["MOTA"] == pytest.approx(100 / 8)
    assert rows["OVERALL"]["MOTA"] == 100


def test_widths_are_one_pixel_more_than_the_corners_differ() -> None:
    # 2 x 2 pixels and 2 x 1 of them; without the extra pixel the second box would have no area.
    gt = BoxTable.make([0], [1], [[0, 0, 1, 1]], categories=["car"])
    tracks = BoxTable.make([0], [1], [[0, 0, 1, 0]], categories=["car"])
    rows = official_scores({"v": (gt, tracks)}, ("car",)).as_dict()
    assert rows["car"]["MOTP"] == pytest.approx(50)


@pytest.mark.parametrize("seed", range(10))
def test_counts_equal_py_motmetrics_on_random_tracks(seed: int) -> None:
    motmetrics = pytest.importorskip(
        "motmetrics", reason="compared only where py-motmetrics happens to be installed"
    )
    rng = np.random.default_rng(seed)
    frames = np.repeat(np.arange(30), 4)
    kept = rng.random((2, len(frames))) < 0.8
    left = np.tile(np.arange(4) * 6.0, 30)
    gt = _boxes(frames[kept[0]], np.tile(np.arange(4), 30)[kept[0]], (left + rng.normal(0, 1, 120))[kept[0]])
    swapped = np.where(frames < 15, np.tile(np.arange(4), 30), np.tile([1, 0, 2, 5], 30))
    tracks = _boxes(frames[kept[1]], swapped[kept[1]], (left + rng.normal(0, 2, 120))[kept[1]])
    pairing = pair(gt, tracks)
    accumulator = motmetrics.MOTAccumulator(auto_id=True)
    for g, t, s in zip(pairing.gt_ids, pairing.track_ids, pairing.similarity, strict=True):
        accumulator.update(g, t, np.where(1 - s > 0.5, np.nan, 1 - s))
    names = ["mota", "idf1", "motp", "num_switches", "num_misses", "num_false_positives", "num_fragmentations"]
    names += ["mostly_tracked", "partially_tracked", "mostly_lost"]
    row = motmetrics.metrics.create().compute(accumulator, metrics=names, name="x").iloc[0]
    found = official_counts(pairing)
    assert (found.mota, found.idf1, 1 - found.motp) == pytest.approx((row["mota"], row["idf1"], row["motp"]))
    counts = (found.switches, found.misses, found.false_positives, found.fragmentations)
    assert counts == tuple(row[n] for n in names[3:7])
    assert (found.mostly_tracked, found.partly_tracked, found.mostly_lost) == tuple(row[n] for n in names[7:])
