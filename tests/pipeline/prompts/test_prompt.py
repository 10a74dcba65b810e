from __future__ import annotations

import pytest

from pipeline.core.errors import InputError
from pipeline.prompts.prompt import Box, Point, check_prompts, parse_box, parse_point, parse_prompts


def test_texts_of_the_command_line_become_prompts() -> None:
    assert parse_point("412,230") == Point(412, 230)
    assert parse_point("640,200:2", at_seconds=1.5) == Point(640, 200, 2, at_seconds=1.5)
    assert parse_point("500,300", positive=False) == Point(500, 300, positive=False)
    assert parse_box("100,80,380,420:3") == Box(100, 80, 380, 420, 3)
    assert parse_prompts(["1,2"], ["3,4"], ["0,0,9,9"], None) == [
        Box(0, 0, 9, 9),
        Point(1, 2),
        Point(3, 4, positive=False),
    ]


@pytest.mark.parametrize("text", ["", "1", "1,2,3", "a,b", "1,2:x", "1,2:", "1;2"])
def test_a_point_that_cannot_be_read_names_the_option_and_the_form(text: str) -> None:
    with pytest.raises(InputError, match="--point .*write it as x,y"):
        parse_point(text)


@pytest.mark.parametrize("text", ["1,2", "1,2,3,4,5", "1,2,3,b"])
def test_a_box_that_cannot_be_read_names_the_option_and_the_form(text: str) -> None:
    with pytest.raises(InputError, match="--box .*left,top,right,bottom"):
        parse_box(text)


@pytest.mark.parametrize("text", ["10,10,5,20", "10,10,20,10"])
def test_a_box_without_area_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="right > left"):
        parse_box(text)


@pytest.mark.parametrize("text", ["1,2:0", "1,2:255", "1,2:-1"])
def test_object_ids_fit_an_index_mask(text: str) -> None:
    with pytest.raises(InputError, match="1 to 254"):
        parse_point(text)


def test_infinite_coordinates_and_times_are_refused() -> None:
    with pytest.raises(InputError, match="finite"):
        parse_point("nan,2")
    with pytest.raises(InputError, match="seconds from 0 on"):
        Point(1, 2, at_seconds=-1)


def test_at_alone_is_an_error() -> None:
    with pytest.raises(InputError, match="--at"):
        parse_prompts([], [], [], 2.0)


@pytest.mark.parametrize("prompt", [Point(20, 5), Point(5, 10), Point(-1, 5), Box(20, 0, 30, 5), Box(-9, 0, 0, 5)])
def test_prompts_outside_the_frame_are_refused(prompt: Point | Box) -> None:
    with pytest.raises(InputError, match="outside the frame, which is 20 x 10 pixels"):
        check_prompts([prompt], (10, 20))


def test_an_object_needs_something_positive_and_one_box_at_most() -> None:
    with pytest.raises(InputError, match="object 2 has only negative points"):
        check_prompts([Point(1, 1), Point(2, 2, 2, positive=False)], (10, 20))
    with pytest.raises(InputError, match="2 boxes"):
        check_prompts([Box(0, 0, 5, 5), Box(1, 1, 6, 6)], (10, 20))
    with pytest.raises(InputError, match="no prompts"):
        check_prompts([], (10, 20))
    check_prompts([Box(-5, -5, 5, 5), Point(2, 2, positive=False)], (10, 20))
