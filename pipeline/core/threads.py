"""Sizes of the thread pools of the libraries, from the number of cores that the process may use.

Torch, OpenCV, FAISS, x264 and BLAS each size their pool by the machine's cores, whatever a container or
``taskset`` allows, and the stages of a run would fight for them. Here the sizes are set in one place: extraction
may use every core, by images or by operations, everything else runs on its stage's own thread.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final, TypeVar

from threadpoolctl import threadpool_limits

_CGROUP: Final = Path("/sys/fs/cgroup")
_set: list[ThreadPools] = []
_setting = threading.Lock()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ThreadPools:
    """Sizes of the pools, each at least 1.

    Attributes:
        torch: Threads of one operation of torch; in a run those of extraction, where images do not share them.
        opencv: Threads of one function of OpenCV.
        faiss: Threads of FAISS.
        encoder: Threads of x264; the bytes of a video depend on it.
        blas: Threads of numpy's and SciPy's BLAS. Their products are small, and OpenBLAS' idle threads spin: with
            two, co-segmentation takes twice the CPU time.
        images: Threads that share the images of a batch in extraction.
        stages: Threads of one operation of torch in the other stages of a run.
    """

    torch: int
    opencv: int = 1
    faiss: int = 1
    encoder: int = 1
    blas: int = 1
    images: int = 1
    stages: int = 1

    def __post_init__(self) -> None:
        if min(astuple(self)) < 1:
            raise ValueError(f"a pool needs at least one thread, got {self}")


def usable_cores() -> int:
    """Cores that this process may use: its affinity and its cgroup's quota, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def cgroup_quota(root: Path = _CGROUP, membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPU time per time that the cgroups (version 1 or 2) of this process allow, in cores; None without a limit.

    Args:
        root: Where the cgroups are mounted.
        membership: The process's file of cgroups.
    """
    limits = [limit for folder in _folders(root, membership) if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def default_pools(cores: int | None = None) -> ThreadPools:
    """The sizes for a number of cores; ``OMP_NUM_THREADS`` in the environment lowers it, as for OpenMP."""
    cores = usable_cores() if cores is None else cores
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        cores = min(cores, int(wanted))
    return ThreadPools(torch=cores, images=cores, stages=max(1, cores // 4), encoder=max(1, cores // 2))


def set_thread_pools(pools: ThreadPools | None = None) -> ThreadPools:
    """Set the pools of the libraries that are loaded; what is not loaded is not loaded for it.

    The encoder's threads are set where an encoder is opened, from :func:`current_pools`.
    """
    pools = pools or default_pools()
    _set.clear()
    _set.append(pools)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(pools.blas))  # of libraries that are loaded later
    threadpool_limits(pools.blas, user_api="blas")
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(pools.torch)
    if cv2 := sys.modules.get("cv2"):
        cv2.setNumThreads(pools.opencv)
    if faiss := sys.modules.get("faiss"):
        faiss.omp_set_num_threads(pools.faiss)
    return pools


def current_pools() -> ThreadPools:
    """What :func:`set_thread_pools` has set last, or the default."""
    return _set[-1] if _set else default_pools()


def own_torch_threads(count: int) -> None:
    """Let one operation of torch use ``count`` threads in this thread; other threads keep what they have.

    ``torch.set_num_threads`` is for the thread that calls it and for those that have not used torch yet. What the
    latter get is set back by a thread of its own.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return
    with _setting:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        restoring = threading.Thread(target=torch.set_num_threads, args=(before,))
        restoring.start()
        restoring.join()


def in_stage_thread(items: Iterator[T]) -> Iterator[T]:
    """The items of a stage, for the thread that iterates them, which gets ``ThreadPools.stages`` threads."""
    own_torch_threads(current_pools().stages)
    yield from items


def _folders(root: Path, membership: Path) -> list[Path]:
    """The process's folders of both versions of cgroups, and the folders above them."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return [root, root / "cpu"]
    folders = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers if controllers else root
        own = top / path.lstrip("/")
        folders += [own, *(folder for folder in own.parents if folder == top or top in folder.parents)]
        folders.append(root / "cpu" if controllers else root)
    return folders


def _limit(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()[:2]
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8").strip()
        limit = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max": no limit
        return None
    return limit if limit > 0 else None
