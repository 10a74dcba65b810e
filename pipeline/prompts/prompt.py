"""Points and boxes on frames, and how the command line writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from pipeline.core.errors import InputError

MAX_OBJECT_ID = 254


@dataclass(frozen=True, slots=True)
class Point:
    """A click.

    Attributes:
        x: Column in frame pixels, from the left.
        y: Row in frame pixels, from the top.
        object_id: The object, 1 to 254.
        positive: Whether the object is here; False says what it is not.
        at_seconds: Presentation time of the frame; None is the first frame that is processed.
    """

    x: float
    y: float
    object_id: int = 1
    positive: bool = True
    at_seconds: float | None = None

    def __post_init__(self) -> None:
        _check(self, (self.x, self.y), self.object_id, self.at_seconds)

    def __str__(self) -> str:
        return f"point {self.x:g},{self.y:g}"


@dataclass(frozen=True, slots=True)
class Box:
    """A box around an object.

    Attributes:
        left: Left edge in frame pixels; continuous coordinates, as for ``Detections.xyxy``.
        top: Top edge.
        right: Right edge.
        bottom: Bottom edge.
        object_id: The object, 1 to 254.
        at_seconds: Presentation time of the frame; None is the first frame that is processed.
    """

    left: float
    top: float
    right: float
    bottom: float
    object_id: int = 1
    at_seconds: float | None = None

    def __post_init__(self) -> None:
        _check(self, (self.left, self.top, self.right, self.bottom), self.object_id, self.at_seconds)
        if self.right - self.left < 1 or self.bottom - self.top < 1:
            raise InputError(f"{self}: give left,top,right,bottom with right > left and bottom > top")

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        return self.left, self.top, self.right, self.bottom

    def __str__(self) -> str:
        return f"box {self.left:g},{self.top:g},{self.right:g},{self.bottom:g}"


Prompt = Point | Box


def parse_point(text: str, *, positive: bool = True, at_seconds: float | None = None) -> Point:
    """A click as the command line writes it: ``x,y`` or ``x,y:object``.

    Raises:
        InputError: Anything else.

    >>> parse_point("640,200:2")
    Point(x=640.0, y=200.0, object_id=2, positive=True, at_seconds=None)
    """
    (x, y), object_id = _numbers(text, 2, "--point" if positive else "--not", "x,y or x,y:object, e.g. 640,200:2")
    return Point(x, y, object_id=object_id, positive=positive, at_seconds=at_seconds)


def parse_box(text: str, *, at_seconds: float | None = None) -> Box:
    """A box as the command line writes it: ``left,top,right,bottom``, with ``:object`` after it or without.

    Raises:
        InputError: Anything else.

    >>> parse_box("100,80,380,420:3").xyxy, parse_box("100,80,380,420:3").object_id
    ((100.0, 80.0, 380.0, 420.0), 3)
    """
    expected = "left,top,right,bottom or left,top,right,bottom:object, e.g. 100,80,380,420:3"
    (left, top, right, bottom), object_id = _numbers(text, 4, "--box", expected)
    return Box(left, top, right, bottom, object_id=object_id, at_seconds=at_seconds)


def parse_prompts(
    points: Sequence[str], nots: Sequence[str], boxes: Sequence[str], at_seconds: float | None
) -> list[Prompt]:
    """All prompts of a command line, boxes first, then clicks, then what the objects are not.

    Raises:
        InputError: One of them cannot be read, or ``--at`` stands alone.
    """
    if at_seconds is not None and not (points or nots or boxes):
        raise InputError("--at names the frame of --point, --not and --box; give one of them too")
    found: list[Prompt] = [parse_box(text, at_seconds=at_seconds) for text in boxes]
    found += [parse_point(text, at_seconds=at_seconds) for text in points]
    return found + [parse_point(text, positive=False, at_seconds=at_seconds) for text in nots]


def check_prompts(prompts: Sequence[Prompt], image_hw: tuple[int, int]) -> None:
    """Refuse prompts of one frame from which no masks can be made.

    Raises:
        InputError: There is none, one lies outside the frame, an object has neither a positive point nor a box, or
            it has two boxes.
    """
    if not prompts:
        raise InputError("no prompts: give at least one point or box")
    height, width = image_hw
    for prompt in prompts:
        if not _overlaps(prompt, height, width):
            raise InputError(f"{prompt} lies outside the frame, which is {width} x {height} pixels")
    for object_id, own in prompts_by_object(prompts).items():
        boxes = [prompt for prompt in own if isinstance(prompt, Box)]
        if len(boxes) > 1:
            raise InputError(f"object {object_id} has {len(boxes)} boxes in one frame; give one box per object")
        if not boxes and not any(isinstance(prompt, Point) and prompt.positive for prompt in own):
            raise InputError(
                f"object {object_id} has only negative points; give a positive point on it or a box around it"
            )


def prompts_by_object(prompts: Sequence[Prompt]) -> dict[int, list[Prompt]]:
    """The prompts of each object in the order given, by ascending object id."""
    ordered = sorted(prompts, key=lambda prompt: prompt.object_id)
    return {object_id: list(own) for object_id, own in groupby(ordered, key=lambda prompt: prompt.object_id)}


def _overlaps(prompt: Prompt, height: int, width: int) -> bool:
    if isinstance(prompt, Point):
        return 0 <= prompt.x < width and 0 <= prompt.y < height
    # A box may reach over the border, for an object that does.
    return prompt.left < width and prompt.top < height and prompt.right > 0 and prompt.bottom > 0


def _check(prompt: Prompt, numbers: tuple[float, ...], object_id: int, at_seconds: float | None) -> None:
    if not all(math.isfinite(number) for number in numbers):
        raise InputError(f"{prompt}: coordinates must be finite numbers of pixels")
    if not 1 <= object_id <= MAX_OBJECT_ID:
        raise InputError(f"{prompt}: the object is {object_id}; objects are numbered 1 to {MAX_OBJECT_ID}")
    if at_seconds is not None and not (math.isfinite(at_seconds) and at_seconds >= 0):
        raise InputError(f"{prompt}: the time is {at_seconds}; give seconds from 0 on")


def _numbers(text: str, count: int, option: str, expected: str) -> tuple[list[float], int]:
    numbers, colon, number = text.partition(":")
    try:
        values = [float(part) for part in numbers.split(",")]
        object_id = int(number) if colon else 1
    except ValueError:
        values, object_id = [], 1
    if len(values) != count:
        raise InputError(f"{option} {text}: write it as {expected}")
    return values, object_id
