"""A function that runs beside its caller, and the lock the two share: for inputs that wait for nobody."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundReader:
    """A daemon thread and a condition. The process does not wait for the thread at its end.

    Args:
        read: What runs in the thread.
        name: The thread's name.

    Attributes:
        changed: Held by both sides while they look at or change what they share.
    """

    def __init__(self, read: Callable[[], None], name: str) -> None:
        self.changed = threading.Condition()
        self._thread = threading.Thread(target=read, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def ended_within(self, seconds: float) -> bool:
        """Wait until the thread has ended, but no longer than ``seconds``."""
        self._thread.join(seconds)
        return not self._thread.is_alive()
