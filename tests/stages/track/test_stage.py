from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipeline.core.config import load_config
from pipeline.core.errors import ConfigError
from pipeline.core.grid import PatchGrid
from pipeline.core.records import Detections, Features, Frame, LabelMap, Packet
from stages.track import RoiConfig, TrackConfig, Tracker
from stages.track.stage import boxes_of_objects, clip_to_frame, describe_boxes

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

    out = list(Tracker(TrackConfig(), detections=detect)(packets(3)))
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


def test_weighting_by_mask_leaves_the_other_object_out() -> None:
    """Two objects share a box; each cell holds its object's id as its feature."""
    maps = labels((1, 0, 0, 32, 48), (2, 32, 0, 64, 48))
    cells = GRID.sample_nearest(torch.from_numpy(maps.index_mask)).float()[None]
    values = Features(cells, GRID)
    both = Detections(
        np.array([[0, 0, 64, 48]] * 2, np.float32), np.ones(2, np.float32), ("",) * 2, np.array([1, 2])
    )
    plain = describe_boxes(values, maps, both, RoiConfig(bins=1))
    masked = describe_boxes(values, maps, both, RoiConfig(bins=1, weighting="mask", weight_floor=0.0))
    assert plain.flatten().tolist() == pytest.approx([1.5, 1.5])
    assert masked.flatten().tolist() == pytest.approx([1.0, 2.0])


def test_weighting_by_saliency_leaves_the_background_out() -> None:
    saliency = torch.zeros(6, 8)
    saliency[:, 4:] = 1
    values = Features(saliency[None] * 5, GRID, saliency=saliency)
    whole = detections((0, 0, 64, 48))
    weighted = describe_boxes(values, None, whole, RoiConfig(bins=1, weighting="saliency", weight_floor=0.0))
    assert weighted.item() == pytest.approx(5.0)


def test_another_facet_can_describe_the_boxes() -> None:
    values = features(extra={"key@9": torch.ones(3, 6, 8)})
    assert describe_boxes(values, None, detections((0, 0, 20, 20)), RoiConfig(), "key@9").shape == (1, 3, 3, 3)
    with pytest.raises(ConfigError, match=r"extract\.facets"):
        describe_boxes(values, None, detections((0, 0, 20, 20)), RoiConfig(), "key@7")


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
            assert tracker._book is not None
            sizes.append(len(tracker._book._entries))
    gc.collect()
    assert max(sizes) <= 5 + 4
