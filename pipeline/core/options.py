"""Options that hold lists: comma-separated names and numbers from the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pipeline.core.errors import ConfigError

Number = TypeVar("Number", int, float)


def names_in(text: str) -> list[str]:
    """The names in a comma-separated option.

    >>> names_in("park, river,")
    ['park', 'river']
    """
    return [name.strip() for name in text.split(",") if name.strip()]


def listed_numbers(option: str, text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """The numbers in a comma-separated option, in their order.

    Args:
        option: The option's name for the error.
        text: Its value.
        kind: ``int`` or ``float``.

    Raises:
        ConfigError: Something else is between the commas.

    >>> listed_numbers("--levels", "0.5, 1", float)
    (0.5, 1.0)
    """
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        what = "whole numbers" if kind is int else "numbers"
        raise ConfigError(f"{option} {text}: give {what} separated by commas") from error


def numbers_in(option: str, text: str) -> list[int]:
    """The positive whole numbers in a comma-separated option, sorted and without duplicates.

    Args:
        option: The option's name for the error, for example ``--every``.
        text: Its value.

    Raises:
        ConfigError: There is none, or something else.

    >>> numbers_in("--every", "5,1,5")
    [1, 5]
    """
    try:
        numbers = sorted({int(part) for part in names_in(text)})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 1:
        raise ConfigError(f"{option} {text}: give whole numbers from 1 on, for example 1,10,30")
    return numbers
