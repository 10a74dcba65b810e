from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.core.colors import OBJECT_COLORS, PART_COLORS, id_colors
from pipeline.core.records import Frame, LabelMap, Packet, PartMap, Track
from pipeline.core.state import load_state, save_state
from stages.annotate import AnnotateConfig, Annotator
from stages.annotate.drawing import tint
from stages.annotate.tracks import Trails, line_thickness


def packet(index: int = 0, *, height: int = 120, width: int = 160, left: float = 40.0) -> Packet:
    mask = np.zeros((height, width), np.uint8)
    mask[30:90, 40:100] = 2
    parts = np.zeros((height, width), np.uint8)
    parts[30:60, 40:100] = 1
    return Packet(
        Frame(np.full((height, width, 3), 100, np.uint8), index, index / 25),
        parts=PartMap(np.zeros((2, 3), np.uint8), 1, parts, np.zeros((2, 3), np.float32)),
        labels=LabelMap(torch.zeros(2, 2, 3), (2,), mask),
        tracks=(Track(2, (left, 30.0, left + 60, 90.0), 1.0),),
    )


def test_regions_are_tinted_in_their_color_and_the_rest_is_untouched() -> None:
    (drawn,) = Annotator(AnnotateConfig(trail_frames=0))([packet()])
    picture = drawn.annotated
    assert picture is not None
    expected = 0.55 * 100 + 0.45 * PART_COLORS[1].astype(float)
    np.testing.assert_allclose(picture[45, 70], expected, atol=1)
    expected = 0.70 * 100 + 0.30 * OBJECT_COLORS[2].astype(float)
    np.testing.assert_allclose(picture[75, 70], expected, atol=1)
    assert (picture[110, 140] == 100).all()


def test_the_input_frame_is_never_drawn_on() -> None:
    for layout in ("overlay", "grid"):
        given = packet()
        list(Annotator(AnnotateConfig(layout=layout))([given]))
        assert (given.frame.image == 100).all()


def test_a_box_has_its_objects_color() -> None:
    (drawn,) = Annotator(AnnotateConfig(outline_objects=False, object_opacity=0))([packet(left=10.0)])
    assert drawn.annotated is not None
    np.testing.assert_array_equal(drawn.annotated[80, 10], OBJECT_COLORS[2])


@pytest.mark.parametrize("size", [(48, 64), (49, 63), (360, 640)])
@pytest.mark.parametrize("layout", ["overlay", "grid"])
def test_every_layout_keeps_the_frames_size(layout: str, size: tuple[int, int]) -> None:
    given = Packet(Frame(np.zeros((*size, 3), np.uint8), 0, 0.0), tracks=(Track(1, (1.0, 1.0, 30.0, 30.0), 1.0),))
    (drawn,) = Annotator(AnnotateConfig(layout=layout))([given])
    assert drawn.annotated is not None
    assert drawn.annotated.shape == (*size, 3)
    assert drawn.annotated.any()


def test_lines_grow_with_the_frame() -> None:
    assert [line_thickness((rows, 2 * rows)) for rows in (240, 360, 720, 1080, 2160)] == [2, 2, 2, 3, 6]


def test_colors_do_not_depend_on_how_many_there_are() -> None:
    few = id_colors(3, first_hue=0.1, saturation=1.0, value=1.0)
    many = id_colors(200, first_hue=0.1, saturation=1.0, value=1.0)
    np.testing.assert_array_equal(few, many[:4])
    assert len(np.unique(many, axis=0)) > 190


def test_tinting_nothing_gives_a_copy() -> None:
    image = np.full((4, 4, 3), 9, np.uint8)
    out = tint(image, np.zeros((4, 4), np.uint8), OBJECT_COLORS, 0.5)
    assert out is not image
    np.testing.assert_array_equal(out, image)


@pytest.mark.parametrize("layout", ["overlay", "grid"])
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_a_restored_annotator_goes_on_bit_for_bit(layout: str, stop: int, tmp_path: Path) -> None:
    config = AnnotateConfig(layout=layout, trail_frames=5)
    inputs = [packet(n, left=20.0 + 5 * n) for n in range(12)]
    expected = [p.annotated for p in Annotator(config)(inputs)]
    first = Annotator(config)
    head = list(first(inputs[:stop]))
    save_state(tmp_path, "annotate", first.state())
    second = Annotator(config)
    second.restore(load_state(tmp_path, "annotate"))
    drawn = [p.annotated for p in [*head, *second(inputs[stop:])]]
    for one, other in zip(drawn, expected, strict=True):
        assert one is not None
        np.testing.assert_array_equal(one, other)


def test_a_trail_holds_the_centers_of_the_last_frames_also_over_frames_without_tracks() -> None:
    trails = Trails(3)
    for n in range(4):
        trails.add([Track(7, (n, 0.0, n + 2.0, 4.0), 1.0)])
    assert trails.of(7).tolist() == [[2, 2], [3, 2], [4, 2]]
    trails.add([])
    assert trails.of(7).tolist() == [[3, 2], [4, 2]]
    trails.add([])
    trails.add([])
    assert trails.of(7).shape == (0, 2)
    assert trails.state()["points"].shape == (0, 4)


def test_a_trail_is_drawn_behind_a_moving_box() -> None:
    annotator = Annotator(AnnotateConfig(outline_objects=False, object_opacity=0, part_opacity=0))
    *_, last = annotator([packet(n, left=10.0 + 10 * n) for n in range(5)])
    assert last.annotated is not None
    np.testing.assert_array_equal(last.annotated[60, 55], OBJECT_COLORS[2])


def test_another_video_needs_a_reset() -> None:
    annotator = Annotator(AnnotateConfig())
    list(annotator([packet(3)]))
    with pytest.raises(ValueError, match=r"call reset\(\)"):
        annotator.step(packet(0))
    annotator.reset()
    assert annotator.current_index is None
    assert annotator.step(packet(0)).annotated is not None


def test_a_trail_follows_a_steadily_moving_object_while_its_mask_breathes() -> None:
    """The mask grows and shrinks by a limb on alternate frames; the body moves by 3 pixels per frame."""
    trails, boxes = Trails(30), []
    for n in range(30):
        mask = np.zeros((80, 200), np.uint8)
        mask[20:60, 20 + 3 * n : 60 + 3 * n] = 4
        if n % 2:
            mask[38:42, 60 + 3 * n : 80 + 3 * n] = 4
        rows, columns = np.nonzero(mask)
        xyxy = (float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
        boxes.append((xyxy[0] + xyxy[2]) / 2)
        labels = LabelMap(torch.zeros(2, 1, 1), (4,), mask, (1.0,))
        trails.add([Track(4, xyxy, 1.0)], labels)
    body = 40.0 + 3 * np.arange(30)
    trail = trails.of(4)
    assert np.abs(np.diff(boxes) - 3).max() == 10
    assert np.abs(np.diff(trail[:, 0]) - 3)[5:].max() < 0.75
    assert np.abs(trail[5:, 0] - body[5:]).max() < 2.0
    assert np.abs(trail[:, 1] - 40).max() < 0.5


def test_a_trail_of_a_detection_keeps_to_its_box_when_a_mask_has_its_number_by_chance() -> None:
    mask = np.zeros((80, 200), np.uint8)
    mask[:10, :10] = 7
    trails = Trails(3)
    trails.add([Track(7, (100.0, 40.0, 120.0, 60.0), 1.0)], LabelMap(torch.zeros(2, 1, 1), (7,), mask, (1.0,)))
    assert trails.of(7).tolist() == [[110, 50]]
