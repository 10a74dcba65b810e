"""Thread pools follow the cores that a process may use: affinity, cgroups of both versions, OMP_NUM_THREADS."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import cv2
import pytest
import torch
from threadpoolctl import threadpool_info

from pipeline.core import threads
from pipeline.core.threads import (
    ThreadPools,
    cgroup_quota,
    current_pools,
    default_pools,
    in_stage_thread,
    own_torch_threads,
    set_thread_pools,
    usable_cores,
)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_tightest_limit_of_a_version_2_cgroup_counts(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "self"
    write(own, "0::/outer/inner\n")
    assert cgroup_quota(root, own) is None
    write(root / "outer" / "inner" / "cpu.max", "max 100000\n")
    assert cgroup_quota(root, own) is None
    write(root / "outer" / "cpu.max", "150000 100000\n")
    assert cgroup_quota(root, own) == 1.5
    write(root / "outer" / "inner" / "cpu.max", "50000 100000\n")
    assert cgroup_quota(root, own) == 0.5
    write(root / "outer" / "inner" / "cpu.max", "nonsense\n")
    assert cgroup_quota(root, own) == 1.5


@pytest.mark.parametrize(("quota", "expected"), [("-1", None), ("200000", 2.0), ("25000", 0.25)])
def test_a_version_1_cgroup_is_read(tmp_path: Path, quota: str, expected: float | None) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "self"
    write(own, "5:cpu,cpuacct:/box\n4:memory:/box\n0::/\n")
    write(root / "cpu,cpuacct" / "box" / "cpu.cfs_quota_us", quota)
    write(root / "cpu,cpuacct" / "box" / "cpu.cfs_period_us", "100000")
    write(root / "memory" / "box" / "cpu.max", "1 100000")
    assert cgroup_quota(root, own) == expected


def test_a_machine_without_cgroups_has_no_limit(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path / "none", tmp_path / "none") is None


@pytest.mark.parametrize(("quota", "expected"), [(None, 4), (2.5, 3), (0.1, 1), (64.0, 4)])
def test_cores_are_those_of_affinity_within_the_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(threads, "cgroup_quota", lambda: quota)
    assert usable_cores() == expected


def test_the_environment_lowers_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert default_pools(4) == ThreadPools(torch=4, opencv=1, faiss=1, encoder=2, images=4, stages=1)
    assert default_pools(16).stages == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert default_pools(4) == ThreadPools(torch=1)
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert default_pools(2).torch == 2


def test_the_pools_are_set() -> None:
    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        assert set_thread_pools(ThreadPools(torch=2, opencv=2)) == ThreadPools(torch=2, opencv=2)
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (2, 2)
        assert current_pools() == ThreadPools(torch=2, opencv=2)
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}
    finally:
        set_thread_pools(ThreadPools(torch=before[0], opencv=before[1]))


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one thread"):
        ThreadPools(torch=0)


def test_a_thread_can_have_its_own_threads_of_torch() -> None:
    before = torch.get_num_threads()
    seen: dict[str, int] = {}

    def note(name: str) -> None:
        seen[name] = torch.get_num_threads()

    def limited() -> None:
        own_torch_threads(before + 2)
        note("own")

    for name, work in (("own", limited), ("later", lambda: note("later"))):
        thread = threading.Thread(target=work, name=name)
        thread.start()
        thread.join()
    assert seen == {"own": before + 2, "later": before}
    assert torch.get_num_threads() == before


def test_a_stages_thread_gets_the_threads_of_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_set", [ThreadPools(torch=1, stages=3)])
    seen: list[tuple[int, int]] = []

    def consume() -> None:
        seen.extend((item, torch.get_num_threads()) for item in in_stage_thread(iter([1, 2])))

    thread = threading.Thread(target=consume)
    thread.start()
    thread.join()
    assert seen == [(1, 3), (2, 3)]
