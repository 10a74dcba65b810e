from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.batch.batch import BatchOptions, run_batch
from pipeline.batch.inputs import collect_jobs
from pipeline.batch.report import BatchReport
from pipeline.core.errors import InputError
from tests.conftest import REPOSITORY
from tests.pipeline.batch.clips import (
    DAMAGED,
    GOOD,
    TEXT,
    hashes,
    holders,
    killing,
    make_long_clip,
    one_by_one,
    settings,
)

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'liftstream[ray]'")
from ray.cluster_utils import Cluster  # noqa: E402

from pipeline.batch.ray_engine import _explain_start, connect  # noqa: E402

pytestmark = [
    pytest.mark.timeout(400),
    # Ray leaves sockets and files to the interpreter's end.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that only drives, and two nodes with one place for a worker each."""
    before = signal.getsignal(signal.SIGTERM)
    paths = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    signal.signal(signal.SIGTERM, before)
    if paths is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = paths


def batch(cluster: Any, folder: Path, out: Path, **changes: Any) -> BatchReport:
    options = BatchOptions(str(out), settings(), engine="ray", address=cluster.address, **changes)
    report, _ = run_batch(collect_jobs([str(folder)], str(out), settings()), options)
    return report


def test_ray_actors_write_the_bytes_of_run(
    cluster: Any, clips: Path, expected: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    report = batch(cluster, clips, tmp_path)
    found = {outcome.name: outcome.status for outcome in report.outcomes}
    assert found == {**dict.fromkeys(GOOD, "done"), DAMAGED: "damaged", TEXT: "put_aside"}
    assert hashes(tmp_path) == expected
    assert report.exit_code == 1


def test_a_node_that_leaves_and_a_video_that_kills_its_worker(cluster: Any, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("a", "b", "poison"):
        make_long_clip(folder, name, 48)
    wanted = one_by_one(folder, tmp_path / "wanted")
    lost = next(iter(cluster.worker_nodes))
    cluster.add_node(num_cpus=1)

    def leave() -> None:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and not holders(out, "[ab]"):
            time.sleep(0.05)
        cluster.remove_node(lost, allow_graceful=False)

    thread = threading.Thread(target=leave)
    with killing(out, "poison") as killed:
        thread.start()
        report = batch(cluster, folder, out, max_attempts=2)
    thread.join()
    found = {outcome.name: outcome.status for outcome in report.outcomes}
    assert found == {"a": "done", "b": "done", "poison": "put_aside"}
    assert len(killed) >= 2
    assert {name: hashes(out)[name] for name in "ab"} == {name: wanted[name] for name in "ab"}


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_workers_killed_at_ten_random_moments(cluster: Any, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in "abcd":
        make_long_clip(folder, name, 150)
    wanted = one_by_one(folder, tmp_path / "wanted")
    with killing(out, "*", times=10, seed=3) as killed:
        report = batch(cluster, folder, out, max_attempts=20)
    assert {outcome.status for outcome in report.outcomes} == {"done"}
    assert hashes(out) == wanted
    assert len(killed) >= 5


def test_an_address_that_does_not_answer_is_told_within_20_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    ray.shutdown()
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(ray, "init", lambda **options: time.sleep(30))
        started = time.monotonic()
        with pytest.raises(InputError, match=rf"{silent}: no Ray cluster .*no answer in 1 s.*ray start --head"):
            connect(silent, timeout_seconds=1.0)
        assert time.monotonic() - started < 20
    with pytest.raises(InputError, match="no Ray cluster answers there"):
        connect(silent)
    monkeypatch.setenv("RAY_ADDRESS", silent)
    with pytest.raises(InputError, match=silent):
        connect(None)


def test_a_node_without_the_package_is_told_in_one_line() -> None:
    reason = _explain_start(RuntimeError("long\ntrace ModuleNotFoundError: No module named 'pipeline' more"))
    assert "a node of the cluster has no package 'pipeline': install liftstream on it" in reason
    assert "\n" not in reason
