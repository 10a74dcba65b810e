from __future__ import annotations

import numpy as np
import pytest

from pipeline.formats.boxes import BoxTable, ClipCounts, to_detections


def test_rows_of_every_frame_keep_the_tables_order() -> None:
    table = BoxTable.make([2, 0, 2, 1], [5, 6, 7, 8], np.zeros((4, 4)))
    assert [rows.tolist() for rows in table.by_frame(4)] == [[1], [3], [0, 2], []]


def test_every_fifth_frame_is_renumbered() -> None:
    table = BoxTable.make(range(12), range(12), np.zeros((12, 4)))
    assert table.every(5).ids.tolist() == [0, 5, 10]
    assert table.every(5, offset=1).ids.tolist() == [1, 6, 11]
    assert table.every(5, offset=1).frames.tolist() == [0, 1, 2]


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="BoxTable of 2 categories"):
        BoxTable.make([0, 1], [0], np.zeros((2, 4)))


def test_an_empty_table_has_no_frames_and_no_detections() -> None:
    assert BoxTable.empty().num_frames == 0
    assert to_detections(BoxTable.empty(), (10, 10)) == ({}, ClipCounts(0, 0))


def test_detections_keep_categories_and_scores_beside_their_boxes() -> None:
    table = BoxTable.make([0, 0, 0], [-1] * 3, [[0, 0, 5, 5], [3, 3, 3, 9], [1, 1, 9, 9]], scores=[1, 2, 3])
    table = BoxTable.make(table.frames, table.ids, table.xyxy, scores=table.scores, categories=["a", "b", "c"])
    found, counts = to_detections(table, (6, 20))
    assert found[0].categories == ("a", "c")
    assert found[0].scores.tolist() == [1.0, 3.0]
    assert found[0].xyxy.tolist() == [[0, 0, 5, 5], [1, 1, 9, 6]]
    assert (counts.clipped, counts.skipped) == (1, 1)
