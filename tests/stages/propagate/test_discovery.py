"""Objects from proposals: new ones wait, known ones are corrected, what comes back keeps its id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipeline.core.grid import PatchGrid
from pipeline.core.records import Features, PartMap
from pipeline.core.state import load_state, save_state
from stages.propagate.discovery import UNSUPPORTED_LIMIT, Discovery, ObjectFinder

GRID = PatchGrid.from_input((96, 128), (96, 128), patch_px=8, stride_px=8)
LOOKS = np.linalg.qr(np.random.default_rng(3).standard_normal((16, 16)))[0]

Box = tuple[int, int, int, int, int]
"""Top, left, bottom, right in cells, and the row of ``LOOKS`` that the cells have."""

A, B, C = (2, 1, 6, 5, 1), (2, 9, 6, 13, 2), (8, 4, 11, 9, 3)


def scene(*boxes: Box) -> tuple[PartMap, Features]:
    """Proposals with given places and looks on a background of look 0."""
    looks = np.zeros(GRID.grid_hw, int)
    regions = np.zeros(GRID.grid_hw, np.uint8)
    for number, (top, left, bottom, right, look) in enumerate(boxes, start=1):
        looks[top:bottom, left:right] = look
        regions[top:bottom, left:right] = number
    data = torch.from_numpy(LOOKS[looks]).float().permute(2, 0, 1).contiguous()
    empty = np.zeros(GRID.image_hw, np.uint8)
    return PartMap(None, 0, empty, np.zeros(GRID.grid_hw, np.float32), regions), Features(data, GRID)


def known(**boxes: Box) -> npt.NDArray[np.uint8]:
    """An index mask with ``id_N`` at a box."""
    mask = np.zeros(GRID.image_hw, np.uint8)
    for name, (top, left, bottom, right, _) in boxes.items():
        mask[8 * top : 8 * bottom, 8 * left : 8 * right] = int(name.removeprefix("id_"))
    return mask


def ids_at(found: Discovery, box: Box) -> int:
    top, left, bottom, right, _ = box
    return int(found.mask[4 * (top + bottom), 4 * (left + right)])


NOTHING = known()


def test_the_first_objects_are_there_at_once_and_later_ones_when_seen_again() -> None:
    finder = ObjectFinder(confirm_sightings=2)
    first = finder.find(*scene(A), NOTHING, ())
    assert ids_at(first, A) == 1
    second = finder.find(*scene(A, B), known(id_1=A), (1,))
    assert set(np.unique(second.mask)) == {0, 1}
    third = finder.find(*scene(A, B), known(id_1=A), (1,))
    assert (ids_at(third, A), ids_at(third, B)) == (1, 2)


def test_what_is_proposed_once_only_is_dropped_and_counted() -> None:
    finder = ObjectFinder(confirm_sightings=2)
    finder.find(*scene(A), NOTHING, ())
    finder.find(*scene(A, B), known(id_1=A), (1,))
    for _ in range(2):
        found = finder.find(*scene(A), known(id_1=A), (1,))
        assert set(np.unique(found.mask)) == {0, 1}
    parts, _ = scene(A)
    assert finder.wants(parts, due=False)
    assert finder.report()["discovery"]["dropped_too_short"] == 1


def test_an_object_that_comes_back_gets_its_id_by_its_looks() -> None:
    finder = ObjectFinder(confirm_sightings=1)
    finder.find(*scene(A, B), NOTHING, ())
    for mask in (known(id_1=A, id_2=B), known(id_1=A)):
        finder.find(*scene(A), mask, (1, 2))
    back = (8, 10, 12, 14, 2)
    found = finder.find(*scene(A, back), known(id_1=A), (1, 2))
    assert ids_at(found, back) == 2
    stranger = finder.find(*scene(A, C), known(id_1=A), (1, 2))
    assert ids_at(stranger, C) == 3


def test_an_object_that_nothing_supports_any_more_has_left() -> None:
    finder = ObjectFinder(confirm_sightings=1)
    finder.find(*scene(A, B), NOTHING, ())
    found = [finder.find(*scene(A), known(id_1=A, id_2=B), (1, 2)).left for _ in range(UNSUPPORTED_LIMIT)]
    assert found == [()] * (UNSUPPORTED_LIMIT - 1) + [(2,)]


def test_a_piece_that_keeps_being_proposed_apart_is_split_off() -> None:
    """Two things found as one: the one that looks like what was found keeps the id."""
    whole, left, right = (2, 2, 6, 12, 1), (2, 2, 6, 7, 1), (2, 7, 6, 12, 2)
    finder = ObjectFinder(confirm_sightings=1)
    finder.find(*scene(whole), NOTHING, ())
    found = [finder.find(*scene(left, right), known(id_1=whole), (1,)) for _ in range(2)]
    assert ids_at(found[0], right) == 1
    assert (ids_at(found[1], left), ids_at(found[1], right)) == (1, 2)


def test_a_body_becomes_the_mask_of_its_face() -> None:
    face, body = (2, 4, 4, 7, 1), (2, 4, 7, 7, 1)
    finder = ObjectFinder(confirm_sightings=1)
    finder.find(*scene(face), NOTHING, ())
    found = [finder.find(*scene(body), known(id_1=face), (1,)) for _ in range(2)]
    assert [ids_at(later, (4, 4, 7, 7, 1)) for later in found] == [0, 1]


def test_new_objects_never_take_pixels_of_known_ones() -> None:
    finder = ObjectFinder(confirm_sightings=1)
    finder.find(*scene(A), NOTHING, ())
    mask = known(id_1=(2, 1, 6, 7, 1))
    found = finder.find(*scene((2, 6, 6, 13, 2)), mask, (1,))
    assert not (found.mask[mask == 1] > 1).any()
    assert ids_at(found, (2, 8, 6, 13, 2)) == 2


def test_a_restored_finder_goes_on_the_same(tmp_path: Path) -> None:
    frames = [scene(A), scene(A, B), scene(A, B), scene(C), scene(B, C)]
    masks = [NOTHING, known(id_1=A), known(id_1=A), known(id_1=A, id_2=B), known(id_2=B)]
    ids = [(), (1,), (1,), (1, 2), (1, 2)]
    whole = ObjectFinder()
    want = [whole.find(*frame, mask, own) for frame, mask, own in zip(frames, masks, ids, strict=True)]
    for done in range(len(frames)):
        first = ObjectFinder()
        for frame, mask, own in zip(frames[:done], masks[:done], ids[:done], strict=True):
            first.find(*frame, mask, own)
        folder = tmp_path / str(done)
        folder.mkdir()
        save_state(folder, "finder", first.state())
        second = ObjectFinder()
        second.restore(load_state(folder, "finder"))
        for n in range(done, len(frames)):
            found = second.find(*frames[n], masks[n], ids[n])
            np.testing.assert_array_equal(found.mask, want[n].mask)
            assert found.left == want[n].left
        assert second.report() == whole.report()
