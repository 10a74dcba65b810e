from __future__ import annotations

import numpy as np
import pytest

from pipeline.images.main_object import choose_method, find_facets
from pipeline.images.object_discovery import find_salient_piece


def test_the_piece_that_stands_out_is_chosen_at_the_level_that_fits_it() -> None:
    """One level for all pictures either loses the weak object or joins the strong one to its surroundings."""
    for inside_value, outside_value in ((1.0, -4.0), (8.0, 2.5)):
        logits = np.full((20, 30), outside_value)
        logits[6:14, 9:20] = inside_value
        piece = find_salient_piece(logits)
        assert piece[7:13, 10:19].all()
        assert piece.sum() < 2 * 8 * 11


def test_of_two_equal_pieces_the_one_nearer_the_middle_is_the_object() -> None:
    logits = np.full((20, 40), -5.0)
    logits[8:13, 17:23] = logits[8:13, 33:39] = 5.0
    piece = find_salient_piece(logits)
    assert piece[10, 20]
    assert not piece[10, 36]


@pytest.mark.parametrize("value", [-9.0, 0.0, 9.0])
def test_a_flat_map_gives_the_whole_picture(value: float) -> None:
    assert find_salient_piece(np.full((8, 8), value)).all()


def test_the_method_follows_the_backbone() -> None:
    assert choose_method("dino_vits8", "key@11") == "tokencut"
    assert choose_method("dinov2_vits14", "key@11") == "objectness"
    assert choose_method("dinov2_vits14", "token@9") == "discriminant"
    assert find_facets("discriminant", "key@11") == ("key@11", "token@-1")
    assert find_facets("objectness", "key@11") == ("key@11",)
