from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipeline.prompts.features import describe
from pipeline.prompts.fields import click_fields, discriminant, path_lengths
from pipeline.prompts.measures import MEASURES, click_depth, measure_regions, ring_around
from pipeline.prompts.ranking import shipped_weights
from pipeline.prompts.views import BoolArray, View, whole
from tests.pipeline.prompts.test_segmentation import COLUMNS, ONE, OTHER, ROWS, scene


@pytest.fixture(scope="module")
def view() -> View:
    image, features, _ = scene(ONE, OTHER)
    return View(describe(image, features), whole(features.grid.image_hw), features.grid.image_hw)


def region(top: int, left: int, bottom: int, right: int) -> BoolArray:
    cells = np.zeros((ROWS, COLUMNS), np.bool_)
    cells[top:bottom, left:right] = True
    return cells.ravel()


def test_measures_match_a_naive_count(view: View) -> None:
    mask = region(4, 4, 14, 12)
    found = dict(zip(MEASURES, measure_regions(view, np.stack([mask, region(0, 0, 3, 5)]))[0], strict=True))
    cells, ring = view.cells, ring_around(mask, (ROWS, COLUMNS))
    apart = cells.whitened[mask].mean(0) - cells.whitened[ring].mean(0)
    assert found["contrast"] == pytest.approx(np.log(np.linalg.norm(apart)), abs=1e-4)
    alike = discriminant(cells, mask, ring) > 0
    assert found["ring_apart"] == pytest.approx((~alike[ring]).mean(), abs=1e-5)
    assert found["far_alike"] == pytest.approx(alike[~mask & ~ring].mean(), abs=1e-5)
    pairs = list(zip(*cells.edges, cells.steps, strict=True))
    cut = [step for a, b, step in pairs if mask[a] != mask[b]]
    inner = [step for a, b, step in pairs if mask[a] and mask[b]]
    assert found["border_steps"] == pytest.approx(np.log(np.mean(cut) + 0.05), abs=1e-4)
    assert found["inner_steps"] == pytest.approx(np.log(np.mean(inner) + 0.05), abs=1e-4)
    assert found["size"] == pytest.approx(np.log(80 / (ROWS * COLUMNS)), abs=1e-5)
    assert found["outline"] == pytest.approx(np.log(len(cut) / np.sqrt(80)), abs=1e-5)
    assert found["roundness"] == pytest.approx(np.log(4 / np.sqrt(80)), abs=0.05)
    assert found["coherence"] == pytest.approx(np.linalg.norm(cells.raw_directions[mask].mean(0)), abs=1e-5)
    assert (found["cut_by_window"], found["cut_by_frame"], found["in_window"]) == (0, 0, 0)


def test_cells_at_the_border_are_counted(view: View) -> None:
    found = measure_regions(view, region(0, 0, 3, 5)[None])[0]
    assert found[MEASURES.index("cut_by_frame")] == pytest.approx(8 / np.sqrt(15), abs=1e-5)


def test_a_click_in_the_middle_is_deeper_than_one_at_the_border(view: View) -> None:
    mask = region(4, 4, 14, 12)[None]
    middle, border = 9 * COLUMNS + 7, 4 * COLUMNS + 4
    assert click_depth(view, mask, [middle])[0] == pytest.approx(1, abs=1e-5)
    assert click_depth(view, mask, [border])[0] < 0.4
    assert click_depth(view, mask, [middle, border])[0] == pytest.approx(
        (1 + click_depth(view, mask, [border])[0]) / 2, abs=1e-5
    )


def test_the_true_region_is_estimated_higher_than_a_part_and_than_one_that_leaks(view: View) -> None:
    masks = np.stack([region(4, 4, 14, 12), region(4, 4, 9, 12), region(4, 4, 14, 19)])
    columns = np.concatenate([measure_regions(view, masks), np.ones((3, 1), np.float32)], axis=1)
    estimates = columns @ shipped_weights().by_kind["click"]
    assert estimates[0] > max(estimates[1:])


def test_path_lengths_match_a_search_without_a_queue(view: View) -> None:
    cells = view.cells
    lengths = np.full(cells.grid.num_cells, np.inf)
    lengths[40] = 0
    costs = (cells.steps + 1e-3) * cells.lengths
    for _ in range(ROWS + COLUMNS + 40):
        for a, b in (cells.edges, cells.edges[::-1]):
            np.minimum.at(lengths, a, lengths[b] + costs)
    assert path_lengths(cells, [40]) == pytest.approx(lengths, rel=1e-4)


def test_fields_are_highest_on_the_clicked_object_and_negative_clicks_take_their_surroundings(view: View) -> None:
    one, other = region(5, 5, 13, 11), region(7, 21, 17, 27)
    clicked, rival = 9 * COLUMNS + 7, 12 * COLUMNS + 24
    for field in click_fields(view.cells, [clicked]).fields:
        assert field[one].min() > np.median(field)
    found = click_fields(view.cells, [clicked], [rival])
    assert found.room[one].all()
    assert not found.room[other].any()


def test_a_walk_visits_what_it_can_reach_without_crossing_a_border_more_often(view: View) -> None:
    visits = view.cells.walker.visits([9 * COLUMNS + 7])
    outside = ~(region(3, 3, 15, 13) | region(5, 19, 19, 29))
    assert visits[region(5, 5, 13, 11)].min() > visits[outside].max()


def test_the_ring_is_what_dilation_adds() -> None:
    mask = region(4, 4, 14, 12)
    side = 2 * int(np.sqrt(80) * 0.35) + 1
    grown = cv2.dilate(mask.reshape(ROWS, COLUMNS).astype(np.uint8), np.ones((side, side))) > 0
    assert np.array_equal(ring_around(mask, (ROWS, COLUMNS)), grown.ravel() & ~mask)
