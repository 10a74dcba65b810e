"""A bounded, evenly spread sample of a stream whose length is not known."""

from __future__ import annotations

from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class EvenReservoir(Generic[ItemT]):
    """Keeps every ``stride``-th item; when full, every second one is dropped and the stride doubled.

    Invariant: at most ``capacity`` items are held, the first among them, ``stride`` apart.

    >>> reservoir = EvenReservoir(3)
    >>> for number in range(10):
    ...     if reservoir.wants_next():
    ...         reservoir.add(number)
    ...     else:
    ...         reservoir.skip()
    >>> reservoir.items, reservoir.stride
    ([0, 4, 8], 4)
    """

    def __init__(self, capacity: int) -> None:
        """Hold at most ``capacity`` items, at least 2."""
        self.capacity = max(2, capacity)
        self.stride = 1
        self.num_seen = 0
        self.items: list[ItemT] = []

    def restore(self, items: list[ItemT], stride: int, num_seen: int) -> None:
        """Continue with the ``items``, ``stride`` and ``num_seen`` of another reservoir of this capacity."""
        self.items, self.stride, self.num_seen = list(items), stride, num_seen

    def wants_next(self) -> bool:
        """Whether the next item of the stream would be kept, so that the others need not be made."""
        if len(self.items) == self.capacity and self.num_seen % self.stride == 0:
            self.items = self.items[::2]
            self.stride *= 2
        return self.num_seen % self.stride == 0

    def add(self, item: ItemT) -> None:
        """Keep the next item; only after :meth:`wants_next` said so."""
        self.items.append(item)
        self.num_seen += 1

    def skip(self) -> None:
        """Pass over the next item."""
        self.num_seen += 1
