from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.core.errors import LabelFileError
from pipeline.evaluation.tracking_preprocess import (
    Benchmark,
    bdd_categories,
    bdd_targets,
    mot_targets,
    share_inside,
)
from pipeline.formats.boxes import BoxTable


def _row(lefts: Sequence[float], categories: Sequence[str] = (), ignored: Sequence[bool] = ()) -> BoxTable:
    """Boxes of 10 x 10 in frame 0 at these places; the place in the list is the identity."""
    return BoxTable.make(
        [0] * len(lefts),
        range(len(lefts)),
        np.array([[x, 0, x + 10, 10] for x in lefts]).reshape(-1, 4),
        categories=list(categories) or None,
        ignored=list(ignored) or None,
    )


# pedestrian, person on a vehicle, car, non-motorised vehicle, static person, distractor, reflection
GT = _row([0, 100, 200, 300, 400, 500, 600], ["1", "2", "3", "6", "7", "8", "12"])


@pytest.mark.parametrize(
    ("benchmark", "kept"),
    [("MOT16", [0, 2, 3, 7]), ("MOT17", [0, 2, 3, 7]), ("MOT20", [0, 2, 7]), ("MOT15", list(range(8)))],
)
def test_tracks_on_distractors_are_deleted_and_those_on_cars_are_not(
    benchmark: Benchmark, kept: list[int]
) -> None:
    tracks = _row([1, 101, 201, 301, 401, 501, 601, 900])
    targets, left = mot_targets(GT, tracks, benchmark=benchmark)
    assert left.ids.tolist() == kept
    assert targets.categories == (GT.categories if benchmark == "MOT15" else ("1",))


def test_a_track_that_fits_a_pedestrian_better_than_a_distractor_is_kept() -> None:
    gt = _row([0, 3], ["1", "8"])
    assert mot_targets(gt, _row([0]), benchmark="MOT17")[1].ids.tolist() == [0]
    assert mot_targets(gt, _row([3]), benchmark="MOT17")[1].ids.tolist() == []
    assert mot_targets(gt, _row([0, 3]), benchmark="MOT17")[1].ids.tolist() == [0]


def test_flagged_ground_truth_is_no_target_but_its_distractors_still_delete() -> None:
    gt = _row([0, 100, 200], ["1", "1", "8"], [False, True, True])
    targets, left = mot_targets(gt, _row([0, 100, 200]), benchmark="MOT17")
    assert targets.ids.tolist() == [0]
    assert left.ids.tolist() == [0, 1]


def test_plain_rules_take_every_class_or_the_wanted_ones() -> None:
    tracks = _row([0, 100, 200])
    targets, left = mot_targets(GT, tracks)
    assert (len(targets), len(left)) == (7, 3)
    targets, left = mot_targets(GT, tracks, classes=["1", "3"])
    assert targets.categories == ("1", "3")
    assert left.ids.tolist() == [0, 2]


def test_results_that_say_a_class_are_filtered_by_it() -> None:
    _, left = mot_targets(GT, _row([0, 700], ["1", "3"]), classes=["1"])
    assert left.ids.tolist() == [0]


def test_benchmarks_with_classes_refuse_data_without_them_and_other_tracks() -> None:
    with pytest.raises(LabelFileError, match="MOT17 rules need the class column"):
        mot_targets(_row([0]), _row([0]), benchmark="MOT17")
    with pytest.raises(LabelFileError, match="the results hold class 3"):
        mot_targets(GT, _row([0], ["3"]), benchmark="MOT17")


def test_distractors_and_aliases_of_bdd() -> None:
    names = ["car", "van", "person", "bike", "motor", "other vehicle", "trailer"]
    table = bdd_categories(_row([0] * 7, names))
    assert table.categories[:5] == ("car", "car", "pedestrian", "bicycle", "motorcycle")
    assert table.ignored.tolist() == [False] * 5 + [True] * 2
    with pytest.raises(LabelFileError, match=r"x\.json: unknown category 'animal'"):
        bdd_categories(_row([0], ["animal"]), source="x.json")


def test_a_class_named_by_the_user_is_no_alias_and_the_rest_is_ignored() -> None:
    table = bdd_categories(_row([0, 0], ["person", "car"]), ("person",))
    assert table.categories == ("person", "car")
    assert table.ignored.tolist() == [False, True]


def test_unmatched_tracks_in_a_crowd_are_deleted_and_matched_ones_are_not() -> None:
    gt = BoxTable.make(
        [0, 0],
        [0, 1],
        np.array([[0, 0, 10, 10], [0, 0, 50, 50]]),
        categories=["car", "pedestrian"],
        ignored=[False, True],
    )
    places = np.array([[1, 0, 11, 10], [20, 20, 30, 30], [45, 0, 55, 10], [46, 0, 56, 10], [70, 0, 80, 10]])
    tracks = BoxTable.make([0] * 5, range(5), places, categories=["car"] * 5)
    targets, left = bdd_targets(gt, tracks, "car")
    assert targets.ids.tolist() == [0]
    # Track 2 lies in the crowd with exactly one half of its area, which is not more than half.
    assert left.ids.tolist() == [0, 2, 3, 4]


def test_only_the_class_itself_is_scored_but_crowds_of_all_classes_are_ignored() -> None:
    gt = _row([0, 100], ["car", "truck"], [False, True])
    tracks = _row([0, 100, 100], ["car", "car", "truck"])
    assert bdd_targets(gt, tracks, "car")[1].ids.tolist() == [0]
    assert bdd_targets(gt, tracks, "truck")[1].ids.tolist() == []


def test_share_of_a_box_in_a_region_is_of_its_own_area() -> None:
    assert share_inside([[0, 0, 10, 10]], [[0, 0, 5, 100], [20, 0, 30, 10]]).tolist() == [[0.5, 0.0]]
    assert share_inside([[0, 0, 9, 9]], [[0, 0, 4, 99]], pixel_extent=1).tolist() == [[0.5]]
    assert share_inside([[3, 3, 3, 3]], [[0, 0, 9, 9]]).tolist() == [[0.0]]
