"""An iterable that counts what has been taken from it, for tests of how far a stage reads ahead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Counted(Generic[T]):
    """Gives the items once and counts them in ``taken``."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self.taken = 0

    def __iter__(self) -> Iterator[T]:
        for item in self._items:
            self.taken += 1
            yield item
