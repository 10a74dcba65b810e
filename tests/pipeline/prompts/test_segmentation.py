from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipeline.core.grid import PatchGrid
from pipeline.core.records import Features
from pipeline.evaluation.davis_metrics import region_similarity
from pipeline.prompts import Box, FrameSegmenter, Point, mask_from_prompts
from pipeline.prompts.features import FrameDescription, describe

CELL = 8
ROWS, COLUMNS = 24, 32


def scene(*objects: tuple[int, int, int, int]) -> tuple[npt.NDArray[np.uint8], Features, npt.NDArray[np.uint8]]:
    """Noise with rectangles (in cells) of a feature and a color each; image, features and truth."""
    generator = np.random.default_rng(0)
    truth = np.zeros((ROWS, COLUMNS), np.uint8)
    for number, (top, left, bottom, right) in enumerate(objects, 1):
        truth[top:bottom, left:right] = number
    centers = 2 * generator.standard_normal((len(objects) + 1, 32))
    cells = centers[truth] + 0.5 * generator.standard_normal((ROWS, COLUMNS, 32))
    grid = PatchGrid((ROWS * CELL, COLUMNS * CELL), (ROWS, COLUMNS), (CELL, CELL), (CELL / 2, CELL / 2))
    features = Features(data=torch.from_numpy(cells.transpose(2, 0, 1).astype(np.float32)), grid=grid)
    pixels = np.kron(truth, np.ones((CELL, CELL), np.uint8))
    colors = np.array([[60, 90, 60], [200, 60, 60], [60, 60, 200]])[pixels]
    image = np.clip(colors + generator.normal(0, 8, colors.shape), 0, 255).astype(np.uint8)
    return image, features, pixels


ONE, OTHER = (4, 4, 14, 12), (6, 20, 18, 28)


def test_one_click_finds_the_object() -> None:
    image, features, truth = scene(ONE)
    mask = mask_from_prompts(image, features, [Point(64, 72)])
    assert mask.dtype == np.uint8
    assert mask.shape == truth.shape
    assert region_similarity(mask == 1, truth == 1) > 0.9


def test_a_box_finds_the_object_and_never_leaves_the_box() -> None:
    image, features, truth = scene(ONE)
    box = Box(28, 28, 100, 116)
    mask = mask_from_prompts(image, features, [box])
    assert region_similarity(mask == 1, truth == 1) > 0.9
    outside = mask.copy()
    outside[28:116, 28:100] = 0
    assert not outside.any()


def test_objects_keep_their_ids_and_do_not_overlap() -> None:
    image, features, truth = scene(ONE, OTHER)
    mask = mask_from_prompts(image, features, [Point(192, 96, 7), Point(64, 72, 3)])
    assert set(np.unique(mask)) == {0, 3, 7}
    assert region_similarity(mask == 3, truth == 1) > 0.9
    assert region_similarity(mask == 7, truth == 2) > 0.9


def test_a_positive_click_adds_and_a_negative_click_takes_away() -> None:
    image, features, truth = scene(ONE, OTHER)
    segmenter = FrameSegmenter(describe(image, features))
    first, second = Point(64, 72), Point(192, 96)
    alone, both = segmenter.object_mask([first]), segmenter.object_mask([first, second])
    assert both[96, 192]
    assert (both & (truth == 2)).sum() > (alone & (truth == 2)).sum()
    again = segmenter.object_mask([first, second, Point(192, 96, positive=False)])
    assert not again[96, 192]


def test_clicked_pixels_are_on_the_side_they_were_clicked_for() -> None:
    image, features, _ = scene(ONE, OTHER)
    segmenter = FrameSegmenter(describe(image, features))
    prompts = [Point(64, 72), Point(90, 108, positive=False), Point(10, 180)]
    mask = segmenter.object_mask(prompts)
    assert [bool(mask[int(point.y), int(point.x)]) for point in prompts] == [True, False, True]


def test_the_answer_does_not_depend_on_what_was_asked_before() -> None:
    image, features, _ = scene(ONE, OTHER)
    segmenter = FrameSegmenter(describe(image, features))
    prompts = [Point(64, 72), Point(192, 96)]
    segmenter.object_mask([Point(10, 10)])
    segmenter.object_mask(prompts[:1])
    fresh = FrameSegmenter(describe(image, features)).object_mask(prompts)
    assert np.array_equal(segmenter.object_mask(prompts), fresh)


def test_the_final_answer_looks_at_a_window_once_and_the_first_one_does_not() -> None:
    image, features, truth = scene(ONE)
    windows: list[tuple[int, ...]] = []

    def describe_window(part: npt.NDArray[np.uint8]) -> FrameDescription:
        windows.append(part.shape)
        # The cells of the frame that lie in the window around the click at (64, 72).
        cells = Features(
            data=features.data[:, 3:15, 0:16],
            grid=PatchGrid.covering((ROWS * CELL // 2, COLUMNS * CELL // 2), (12, 16)),
        )
        return describe(part, cells)

    segmenter = FrameSegmenter(describe(image, features), describe_window)
    point = Point(64, 72)
    first = segmenter.object_mask([point], fine=False)
    assert not windows
    final = segmenter.object_mask([point])
    assert windows == [(ROWS * CELL // 2, COLUMNS * CELL // 2, 3)]
    segmenter.object_mask([point, Point(200, 100, positive=False)])
    assert len(windows) == 1
    for mask in (first, final):
        assert region_similarity(mask, truth == 1) > 0.85


def test_prompts_that_contradict_each_other_still_give_a_mask() -> None:
    image, features, _ = scene(ONE)
    segmenter = FrameSegmenter(describe(image, features))
    assert segmenter.object_mask([Point(64, 72), Point(64, 72, positive=False)]).dtype == np.bool_
    boxed = segmenter.object_mask([Box(28, 28, 100, 116), Point(200, 150)])
    assert not boxed[116:].any()


@pytest.mark.parametrize("position", [(0.5, 0.5), (255.5, 191.5)])
def test_a_click_in_a_corner_of_a_uniform_frame_gives_a_mask(position: tuple[float, float]) -> None:
    image = np.full((ROWS * CELL, COLUMNS * CELL, 3), 127, np.uint8)
    _, features, _ = scene()
    flat = Features(data=torch.ones_like(features.data), grid=features.grid)
    mask = mask_from_prompts(image, flat, [Point(*position)])
    assert mask[int(position[1]), int(position[0])] == 1
