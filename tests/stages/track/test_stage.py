from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.core.config import load_config
from pipeline.core.grid import PatchGrid
from pipeline.core.records import Detections, Features, Frame, LabelMap, Packet
from pipeline.core.state import load_state, save_state
from stages.track import TrackConfig, Tracker
from stages.track.boxes import boxes_of_objects, clip_to_frame
from stages.track.stage import DetectionSource

GRID = PatchGrid((48, 64), (6, 8), (8.0, 8.0), (4.0, 4.0))
IMAGE = np.zeros((48, 64, 3), np.uint8)


def detections(*xyxy: tuple[float, float, float, float], scores: tuple[float, ...] = ()) -> Detections:
    count = len(xyxy)
    return Detections(
        np.array(xyxy, np.float32).reshape(count, 4),
        np.array(scores or (0.9,) * count, np.float32),
        ("",) * count,
        np.zeros(count, np.int64),
    )


def features(seed: int = 0, extra: dict[str, torch.Tensor] | None = None) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(torch.randn(4, 6, 8, generator=generator), GRID, extra=extra or {})


def labels(*boxes: tuple[int, int, int, int, int]) -> LabelMap:
    """Objects as filled boxes: (id, left, top, right, bottom)."""
    mask = np.zeros((48, 64), np.uint8)
    for object_id, left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = object_id
    ids = tuple(box[0] for box in boxes)
    cells = GRID.sample_nearest(torch.from_numpy(mask))
    probs = torch.stack([(cells == object_id).float() for object_id in (0, *ids)])
    return LabelMap(probs, ids, mask)


def packets(count: int, maps: LabelMap | None = None) -> Iterator[Packet]:
    for index in range(count):
        yield Packet(Frame(IMAGE, index, index / 24), features=features(), labels=maps)


def test_every_packet_comes_out_in_order_with_tracks() -> None:
    found = {index: detections((5 + index, 5, 25 + index, 30)) for index in range(0, 6, 2)}
    out = list(Tracker(TrackConfig(), detections=found)(packets(6)))
    assert [packet.index for packet in out] == list(range(6))
    assert [[track.track_id for track in packet.tracks or ()] for packet in out][::2] == [[1], [1], [1]]


def test_a_callable_can_be_the_detector() -> None:
    def detect(frame: Frame) -> Detections:
        return detections((5 + frame.index, 5, 25 + frame.index, 30))

    out = list(Tracker(TrackConfig(embeddings=True), detections=detect)(packets(3)))
    assert all(packet.tracks and packet.tracks[0].track_id == 1 for packet in out)
    embedding = out[0].tracks[0].embedding if out[0].tracks else None
    assert embedding is not None
    assert embedding.shape == (4,)
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)


def test_propagated_objects_are_tracked_under_their_own_ids() -> None:
    out = list(Tracker(TrackConfig())(packets(3, labels((9, 4, 6, 20, 30), (2, 30, 10, 50, 40)))))
    for packet in out:
        assert packet.tracks is not None
        assert [(track.track_id, track.xyxy) for track in packet.tracks] == [
            (2, (30, 10, 50, 40)),
            (9, (4, 6, 20, 30)),
        ]


def test_detections_share_the_ids_of_the_objects_they_show() -> None:
    """A box on object 9 becomes track 9; a box on nothing propagated gets an id no object can have."""
    maps = labels((9, 4, 6, 20, 30))
    found = {index: detections((40, 10, 60, 40), (5, 6, 21, 31)) for index in range(3)}
    out = list(Tracker(TrackConfig(), detections=found)(packets(3, maps)))
    assert [[track.track_id for track in packet.tracks or ()] for packet in out] == [[9, 256]] * 3


def test_without_features_boxes_are_tracked_by_place() -> None:
    found = {index: detections((5 + index, 5, 25 + index, 30)) for index in range(4)}
    bare = (Packet(Frame(IMAGE, index, index / 24)) for index in range(4))
    out = list(Tracker(TrackConfig(), detections=found)(bare))
    assert [[track.track_id for track in packet.tracks or ()] for packet in out] == [[1]] * 4


def test_nothing_to_track_gives_empty_tracks_not_none() -> None:
    assert [packet.tracks for packet in Tracker(TrackConfig())(packets(2))] == [(), ()]


def test_boxes_outside_the_frame_are_clipped_or_left_out() -> None:
    found = clip_to_frame(detections((-10, -10, 20, 20), (70, 0, 90, 20), (10, 10, 10, 30)), (48, 64))
    assert found.xyxy.tolist() == [[0, 0, 20, 20]]


def test_an_object_without_pixels_has_no_box() -> None:
    maps = labels((3, 0, 0, 5, 5))
    gone = LabelMap(torch.zeros(3, 6, 8), (3, 4), maps.index_mask, (0.5, 0.1))
    found = boxes_of_objects(gone)
    assert found.object_ids.tolist() == [3]
    assert found.scores.tolist() == [0.5]


def test_the_stage_reports_what_it_did() -> None:
    found = {index: detections((5, 5, 25, 30)) for index in range(3)}
    tracker = Tracker(TrackConfig(), detections=found)
    list(tracker(packets(4)))
    assert tracker.report() == {"frames": 4, "detections": 3, "tracks": 1, "returns": 0}


def test_state_does_not_grow_with_the_length_of_the_video() -> None:
    """A new object every frame, seen once: tracks are forgotten as fast as they come."""
    config = load_config(TrackConfig, {"association": {"max_lost": 5, "max_age_seconds": 0.1}})

    def arriving(frame: Frame) -> Detections:
        left = frame.index * 7 % 40
        return detections((left, 5, left + 15, 30))

    tracker = Tracker(config, detections=arriving)
    stream = tracker(Packet(Frame(IMAGE, n, n / 24), features=features(seed=n)) for n in range(300))
    sizes = []
    for packet in stream:
        if packet.index in (100, 299):
            sizes.append(len(tracker._manager._tracks))
    gc.collect()
    assert max(sizes) <= 5 + 4


def moving(frame: Frame) -> Detections:
    """Two boxes that cross, jitter, and are missed now and then; scores from both rounds."""
    random = np.random.default_rng(frame.index)
    corners = np.array([[2 + frame.index, 5], [40 - frame.index, 12]]) + random.normal(0, 0.7, (2, 2))
    kept = corners[random.uniform(size=2) > 0.2]
    boxes = [(float(x), float(y), float(x) + 18, float(y) + 25) for x, y in kept]
    return detections(*boxes, scores=tuple(random.choice([0.9, 0.4], len(boxes)).tolist()))


def _bytes_of(values: np.ndarray | None) -> bytes | None:
    return None if values is None else values.tobytes()


def shown(packets: list[Packet]) -> list[list[tuple[object, ...]]]:
    """All fields of all tracks, floats with every bit, embeddings as bytes."""
    return [
        [
            (t.track_id, t.xyxy, t.score, t.age, t.time_since_update, t.confidence, _bytes_of(t.embedding))
            for t in packet.tracks or ()
        ]
        for packet in packets
    ]


@pytest.mark.parametrize("detect", [moving, None], ids=["detections", "objects"])
@pytest.mark.parametrize("stop", [0, 1, 13, 29])
def test_a_restored_tracker_goes_on_bit_for_bit(detect: DetectionSource | None, stop: int, tmp_path: Path) -> None:
    config = TrackConfig(embeddings=True)
    inputs = [
        Packet(
            Frame(IMAGE, n, n / 24),
            features=features(n // 9),
            labels=None if detect else labels((4, n, 3, n + 20, 30)),
        )
        for n in range(30)
    ]
    whole = Tracker(config, detections=detect)
    expected = list(whole(inputs))
    first = Tracker(config, detections=detect)
    head = list(first(inputs[:stop]))
    save_state(tmp_path, "track", first.state())
    second = Tracker(config, detections=detect)
    second.restore(load_state(tmp_path, "track"))
    assert second.current_index == (stop - 1 if stop else None)
    assert shown(head + list(second(inputs[stop:]))) == shown(expected)
    assert second.report() == whole.report()
    assert any(packet.tracks for packet in expected[20:])


class Several:
    """``moving`` for several frames at once."""

    batched = True

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, frame: Frame) -> Detections:
        return moving(frame)

    def detect_frames(self, frames: Sequence[Frame]) -> list[Detections]:
        self.sizes.append(len(frames))
        return [moving(frame) for frame in frames]


@pytest.mark.parametrize("stop", [0, 2, 4, 9])
def test_frames_held_for_a_batched_detector_are_part_of_the_state(stop: int, tmp_path: Path) -> None:
    inputs = list(packets(11))
    expected = list(Tracker(TrackConfig(), detections=moving)(inputs))
    assert shown(list(Tracker(TrackConfig(), detections=Several(), batch_size=4)(inputs))) == shown(expected)
    first = Tracker(TrackConfig(), detections=Several(), batch_size=4)
    head: list[Packet] = []
    taken: list[int] = []

    def arriving() -> Iterator[Packet]:
        yield from inputs[:stop]
        save_state(tmp_path, "track", first.state())  # while the stage asks for its next item, as the runner does
        taken.append(len(head))
        yield from inputs[stop:]

    for packet in first(arriving()):
        head.append(packet)
    second = Tracker(TrackConfig(), detections=Several(), batch_size=4)
    second.restore(load_state(tmp_path, "track"))
    assert taken == [stop // 4 * 4]
    assert shown(head[: taken[0]] + list(second(inputs[stop:]))) == shown(expected) == shown(head)


def test_a_state_is_a_snapshot_that_later_frames_do_not_change(tmp_path: Path) -> None:
    inputs = list(packets(12))
    tracker = Tracker(TrackConfig(), detections=moving)
    list(tracker(inputs[:6]))
    state = tracker.state()
    tail = shown(list(tracker(inputs[6:])))
    again = Tracker(TrackConfig(), detections=moving)
    again.restore(state)
    assert shown(list(again(inputs[6:]))) == tail


def test_boxes_can_be_given_step_by_step() -> None:
    given = {index: moving(Frame(IMAGE, index, index / 24)) for index in range(8)}
    expected = list(Tracker(TrackConfig(), detections=given)(packets(8)))
    tracker = Tracker(TrackConfig())
    assert shown([tracker.step(p, given[p.index]) for p in packets(8)]) == shown(expected)


def test_detections_may_begin_in_the_middle_and_go_on_with_the_objects_ids() -> None:
    """Object 9 keeps its id when a detector takes over; without boxes in a frame nothing is made up."""
    tracker = Tracker(TrackConfig())
    inputs = list(packets(4, labels((9, 4, 6, 20, 30))))
    steps = [tracker.step(inputs[0])]
    steps += [tracker.step(packet, detections((5, 6, 21, 31), (40, 10, 60, 40))) for packet in inputs[1:3]]
    assert [[track.track_id for track in packet.tracks or ()] for packet in steps] == [[9], [9, 256], [9, 256]]
    last = tracker.step(inputs[3], detections())
    assert all(track.time_since_update == 1 for track in last.tracks or ())


def test_another_video_needs_a_reset() -> None:
    tracker = Tracker(TrackConfig(), detections=moving)
    first = shown(list(tracker(packets(5))))
    with pytest.raises(ValueError, match=r"frame 0 comes after frame 4; call reset\(\)"):
        list(tracker(packets(5)))
    tracker.reset()
    assert tracker.current_index is None
    assert shown(list(tracker(packets(5)))) == first


def test_detections_that_are_all_below_the_minimum_score_give_a_warning() -> None:
    found = {index: detections((5, 5, 25, 30), scores=(0.05,)) for index in range(3)}
    tracker = Tracker(TrackConfig(), detections=found)
    assert all(packet.tracks == () for packet in tracker(packets(3)))
    (line,) = tracker.warnings
    assert "all 3 detections score below track.association.min_score = 0.1 (the best has 0.05)" in line
    found[3] = detections((5, 5, 25, 30))
    tracker = Tracker(TrackConfig(), detections=found)
    list(tracker(packets(4)))
    assert tracker.warnings == []


def test_embeddings_are_made_only_where_asked_for() -> None:
    for asked in (False, True):
        found = {0: detections((5, 5, 25, 30))}
        (packet,) = Tracker(TrackConfig(embeddings=asked), detections=found)(packets(1))
        assert packet.tracks
        assert all((track.embedding is not None) == asked for track in packet.tracks)


def test_old_config_keys_still_work_and_say_their_new_name() -> None:
    with pytest.warns(FutureWarning, match="'sure_score' is now called 'high_score'"):
        config = load_config(TrackConfig, {"association": {"sure_score": 0.7}})
    assert config.association.high_score == 0.7
