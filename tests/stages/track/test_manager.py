from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.core.arrays import normalize_rows
from pipeline.core.records import Detections, Track
from stages.track.config import AssociationConfig
from stages.track.manager import TrackManager
from stages.track.objects import ObjectTracks

SIZE = (480, 640)
VIEWS = np.eye(8, dtype=np.float32)
RATE = 25.0


def boxes(*centers: tuple[float, float], scores: Sequence[float] = (), names: Sequence[str] = ()) -> Detections:
    """Boxes of 40 x 60 pixels."""
    count = len(centers)
    corners = [(x - 20, y - 30, x + 20, y + 30) for x, y in centers]
    return Detections(
        np.array(corners, np.float32).reshape(count, 4),
        np.array(scores or [0.9] * count, np.float32),
        tuple(names) or ("",) * count,
        np.zeros(count, np.int64),
    )


class Scene:
    """Feeds a manager frame by frame at 25 frames a second."""

    def __init__(self, **settings: Any) -> None:
        self.manager = TrackManager(AssociationConfig(**settings))
        self.frame = 0

    def step(
        self,
        found: Detections,
        views: Sequence[int] | None = None,
        background: npt.NDArray[np.float32] | None = None,
    ) -> dict[int, Track]:
        """One frame; ``views`` picks each box's descriptor, ``background`` that of any other place."""
        descriptors = None if views is None else VIEWS[list(views)]
        describe = None if background is None else lambda xyxy: np.repeat(background[None], len(xyxy), axis=0)
        tracks = self.manager.step(found, descriptors, None, self.frame / RATE, SIZE, describe=describe)
        self.frame += 1
        return {track.track_id: track for track in tracks}

    def wait(self, frames: int) -> list[dict[int, Track]]:
        return [self.step(boxes(), [], VIEWS[7]) for _ in range(frames)]


def test_objects_that_cross_keep_their_ids_by_appearance() -> None:
    scene = Scene()
    for frame in range(40):
        tracks = scene.step(boxes((100 + 8 * frame, 200), (412 - 8 * frame, 205)), [0, 1])
    left, right = tracks[1].xyxy[0], tracks[2].xyxy[0]
    assert sorted(tracks) == [1, 2]
    assert left > right


def test_objects_that_cross_keep_their_ids_by_motion_without_features() -> None:
    scene = Scene()
    for frame in range(40):
        tracks = scene.step(boxes((100 + 8 * frame, 200), (412 - 8 * frame, 230)))
    assert sorted(tracks) == [1, 2]
    assert tracks[1].xyxy[0] > tracks[2].xyxy[0]


def test_a_high_score_box_is_shown_at_once_and_a_low_score_one_when_it_is_seen_again() -> None:
    scene = Scene(confirm_score=0.8)
    found = boxes((100, 100), (400, 300), scores=[0.9, 0.7])
    assert [sorted(scene.step(found, [0, 1])) for _ in range(2)] == [[1], [1, 2]]


def test_a_single_false_alarm_is_never_shown() -> None:
    scene = Scene(confirm_score=0.95)
    shown = [scene.step(boxes((100, 100)), [0]), *scene.wait(20)]
    assert not any(shown)
    assert scene.manager.num_tracks == 1


def test_low_score_boxes_continue_tracks_but_start_none() -> None:
    scene = Scene()
    scene.step(boxes((100, 100)), [0])
    tracks = scene.step(boxes((101, 100), (400, 300), scores=[0.3, 0.3]), [0, 1])
    assert sorted(tracks) == [1]
    assert tracks[1].time_since_update == 0


def test_boxes_below_the_minimum_score_are_ignored() -> None:
    scene = Scene(coast_seconds=0)
    scene.step(boxes((100, 100)), [0])
    assert scene.step(boxes((100, 100), scores=[0.05]), [0]) == {}


def test_categories_do_not_mix() -> None:
    scene = Scene()
    scene.step(boxes((100, 100), names=["car"]), [0])
    assert sorted(scene.step(boxes((100, 100), names=["person"]), [0], VIEWS[7])) == [2]


def test_a_lost_track_is_reidentified_by_appearance_anywhere() -> None:
    scene = Scene()
    for _ in range(3):
        scene.step(boxes((100, 100), (300, 300)), [0, 1])
    for _ in range(40):
        scene.step(boxes((300, 300)), [1])
    tracks = scene.step(boxes((300, 300), (550, 400)), [1, 0])
    assert sorted(tracks) == [1, 2]
    assert tracks[1].xyxy == pytest.approx((530, 370, 570, 430))
    assert scene.manager.num_returns == 1


def test_another_object_in_a_lost_tracks_place_gets_a_new_id() -> None:
    scene = Scene()
    for _ in range(3):
        scene.step(boxes((100, 100), (300, 300)), [0, 1])
    for _ in range(40):
        scene.step(boxes((300, 300)), [1])
    assert sorted(scene.step(boxes((300, 300), (100, 100)), [1, 2])) == [2, 3]


def test_lost_tracks_are_forgotten_in_time_and_in_number() -> None:
    scene = Scene(max_lost=2, memory_seconds=2.0, max_age_seconds=0.2)
    spread = [(60 + 90 * n, 100) for n in range(6)]
    scene.step(boxes(*spread), range(6))
    scene.wait(20)
    assert len(scene.manager._tracks) == 2
    scene.wait(60)
    assert scene.manager._tracks == []


def test_a_missed_box_is_shown_at_its_predicted_place_while_the_features_there_match() -> None:
    scene = Scene()
    for frame in range(6):
        scene.step(boxes((100 + 4 * frame, 100)), [0])
    coasted = scene.step(boxes(), [], VIEWS[0])
    assert coasted[1].time_since_update == 1
    assert coasted[1].xyxy[0] == pytest.approx(80 + 4 * 6, abs=1)
    assert scene.step(boxes(), [], VIEWS[3]) == {}


def test_a_missed_box_is_not_shown_for_longer_than_coast_seconds() -> None:
    scene = Scene(coast_seconds=0.2)
    for _ in range(4):
        scene.step(boxes((100, 100)), [0])
    shown = [bool(scene.step(boxes(), [], VIEWS[0])) for _ in range(8)]
    assert shown == [True] * 5 + [False] * 3


def test_a_second_box_on_an_object_starts_no_track() -> None:
    scene = Scene()
    for _ in range(3):
        tracks = scene.step(boxes((100, 100), (102, 101)), [0, 0])
    assert sorted(tracks) == [1]


def test_cosines_are_rescaled_by_those_of_different_objects() -> None:
    """All cosines lie above 0.9, as those of keys do: the small differences between objects must still count."""
    scene = Scene(appearance_weight=1.0, different_cosine=0.7)
    shift = np.full(8, 3.0, np.float32)
    close = normalize_rows(VIEWS + shift)
    assert (close @ close.T).min() > 0.9
    for _ in range(30):
        scene.manager.step(boxes((100, 100), (400, 100)), close[[0, 1]], None, scene.frame / RATE, SIZE)
        scene.frame += 1
    assert scene.manager._similarity.different_cosine == pytest.approx(float(close[0] @ close[1]), abs=0.02)


def test_an_assigned_id_is_given_once() -> None:
    manager = TrackManager(AssociationConfig(), first_id=256)
    assigned = np.array([7, 7, 0])
    tracks = manager.step(
        boxes((100, 100), (300, 100), (500, 100)), VIEWS[:3], None, 0.0, SIZE, assigned_ids=assigned
    )
    assert [track.track_id for track in tracks] == [7, 256, 257]


def test_boxes_stay_inside_the_frame() -> None:
    scene = Scene()
    for frame in range(10):
        tracks = scene.step(boxes((630 + frame, 100)), [0])
    assert tracks[1].xyxy[2] == 640


def test_time_must_not_run_backwards() -> None:
    manager = TrackManager(AssociationConfig())
    manager.step(boxes((100, 100)), None, None, 1.0, SIZE)
    with pytest.raises(ValueError, match="order of time"):
        manager.step(boxes((100, 100)), None, None, 0.5, SIZE)


def test_free_ids_avoid_those_assigned_from_objects() -> None:
    manager = TrackManager(AssociationConfig())
    tracks = manager.step(
        boxes((100, 100), (300, 100), (500, 100)), VIEWS[:3], None, 0.0, SIZE, assigned_ids=np.array([1, 0, 0])
    )
    assert [track.track_id for track in tracks] == [1, 2, 3]


def test_once_objects_are_propagated_no_free_id_can_be_an_objects() -> None:
    """Object 1 appears after track 1 has started: the object's box gets an id that no object can have."""
    manager = TrackManager(AssociationConfig())
    manager.step(boxes((100, 100)), VIEWS[:1], None, 0.0, SIZE)
    manager.reserve_object_ids()
    tracks = manager.step(
        boxes((100, 100), (400, 300)), VIEWS[:2], None, 0.04, SIZE, assigned_ids=np.array([0, 1])
    )
    assert [track.track_id for track in tracks] == [1, 256]


def test_propagated_objects_keep_their_own_ids() -> None:
    objects = ObjectTracks()
    found = Detections(
        np.array([[1, 2, 11, 22], [5, 5, 9, 9]], np.float32),
        np.array([0.5, 1.0], np.float32),
        ("", ""),
        np.array([9, 4]),
    )
    objects.step(found, None)
    tracks = objects.step(found, None)
    assert [(track.track_id, track.age, track.time_since_update) for track in tracks] == [(4, 1, 0), (9, 1, 0)]
    assert tracks[1].xyxy == (1, 2, 11, 22)
    assert tracks[1].confidence == 0.5
    assert objects.num_tracks == 2
