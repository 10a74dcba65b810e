"""A batch on the CPU in parts side by side, each on a thread of its own.

The other way to use several cores, all of them for one operation after the other, ends every operation with a wait
for the slowest thread. Beside the other stages, which take cores away at any time, those waits cost more than the
operations' threads gain. Parts have a fixed size, so that results do not depend on the number of cores.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from pipeline.core.threads import current_pools, own_torch_threads

T = TypeVar("T")

PART: Final = 2
"""Images of a part: two have their activations in the caches, and products of two are as fast as those of four."""


class Parts:
    """Runs work on the parts of a batch. Keeps its threads, which end with it."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._sizes = (0, 0)

    def __call__(self, work: Callable[[slice], T], count: int) -> list[T]:
        """Results of ``work`` for each part of ``count`` images, in order.

        On as many threads as there are parts, at most ``ThreadPools.images``, which share the cores of
        ``ThreadPools.torch``. One part runs in this thread.
        """
        slices = [slice(first, first + PART) for first in range(0, count, PART)]
        pools = current_pools()
        workers = min(pools.images, len(slices))
        if workers == 1:
            return [work(part) for part in slices]
        executor = self._executor(workers, max(1, pools.torch // workers))
        return list(executor.map(work, slices))

    def _executor(self, workers: int, torch_threads: int) -> ThreadPoolExecutor:
        if self._threads is None or self._sizes != (workers, torch_threads):
            self.close()
            self._sizes = (workers, torch_threads)
            self._threads = ThreadPoolExecutor(
                workers, "extract", initializer=own_torch_threads, initargs=(torch_threads,)
            )
        return self._threads

    def close(self) -> None:
        """End the threads; a later call starts new ones."""
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None
