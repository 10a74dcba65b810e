from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pipeline.batch.batch import BatchOptions, run_batch
from pipeline.batch.driver import WorkersError
from pipeline.batch.inputs import collect_jobs
from pipeline.batch.jobs import WorkerSettings
from pipeline.batch.report import BatchReport
from pipeline.core.checkpoint import find_snapshot
from pipeline.core.errors import InputError
from tests.conftest import REPOSITORY
from tests.pipeline.batch.clips import (
    DAMAGED,
    GOOD,
    TEXT,
    command,
    hashes,
    holders,
    kill,
    killing,
    make_long_clip,
    one_by_one,
    settings,
)

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'liftstream[ray]'")
from ray.cluster_utils import Cluster  # noqa: E402

from pipeline.batch import ray_engine  # noqa: E402
from pipeline.batch.ray_engine import RayEngine, connect  # noqa: E402

WITHOUT_THE_PACKAGE = """
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pipeline":
            raise ModuleNotFoundError("No module named 'pipeline'", name=name)

sys.meta_path.insert(0, Finder())
"""
"""A start file for Python that hides the package."""

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


def batch(
    cluster: Any, folder: Path, out: Path, *, engine: RayEngine | None = None, **changes: Any
) -> BatchReport:
    options = BatchOptions(str(out), settings(), engine="ray", address=cluster.address, **changes)
    report, _ = run_batch(collect_jobs([str(folder)], str(out), settings()), options, engine=engine)
    return report


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def locked(out: Path, *names: str) -> Iterator[ExitStack]:
    """Hold the locks of videos, as another batch at work on them does; closing what it gives lets go of them."""
    with ExitStack() as stack:
        for name in names:
            path = out / ".batch" / "locks" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("w"))
            file.write("elsewhere:0")
            file.flush()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield stack


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

    def leave() -> None:
        wait_until(lambda: holders(out, "[ab]"), "nobody began with a or b")
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


def test_a_killed_driver_leaves_no_actors_and_a_node_that_joins_is_used(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "_GROW_SECONDS", 0.5)
    while len(cluster.worker_nodes) > 1:
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in "abc":
        make_long_clip(folder, name, 100 if name == "a" else 30)
    wanted = one_by_one(folder, tmp_path / "wanted")
    with locked(out, "b", "c") as locks:
        first = subprocess.Popen(
            command(folder, out, "--engine", "ray", "--address", cluster.address),
            cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(lambda: find_snapshot(out / "a" / "checkpoint") and holders(out, "a"), "nobody began with a")
        (orphan,) = holders(out, "a")
        kill(first.pid)
        first.wait()
        connect(cluster.address)
        engine = RayEngine(WorkerSettings(str(out), settings().model_dump(mode="json")))

        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(batch, cluster, folder, out, engine=engine)
            wait_until(lambda: not is_alive(orphan), "the actor of the killed driver goes on", 30)
            cluster.add_node(num_cpus=1)
            wait_until(lambda: len(engine.idle()) == 2, "the node that joined is not used")
            locks.close()
            report = second.result(90)
    found = {outcome.name: outcome for outcome in report.outcomes}
    assert {name: outcome.status for name, outcome in found.items()} == dict.fromkeys("abc", "done")
    assert found["a"].new_frames < found["a"].frames == 100
    assert found["b"].worker != found["c"].worker
    assert hashes(out) == wanted


def test_a_node_without_the_package_is_said_in_one_line(
    cluster: Any, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "_GROW_SECONDS", 0.5)
    while cluster.worker_nodes:
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_THE_PACKAGE)
    cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(tmp_path)})
    with pytest.raises(WorkersError, match="no Python package 'pipeline': install liftstream on every") as caught:
        batch(cluster, clips, tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_workers_killed_at_ten_random_moments(cluster: Any, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in "abcd":
        make_long_clip(folder, name, 300)
    wanted = one_by_one(folder, tmp_path / "wanted")
    with killing(out, "*", times=10, seed=3) as killed:
        report = batch(cluster, folder, out, max_attempts=20)
    assert {outcome.status for outcome in report.outcomes} == {"done"}
    assert hashes(out) == wanted
    assert len(killed) == 10


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


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.skipif(find_spec("aiohttp_cors") is None, reason="needs pip install 'ray[default]'")
def test_a_job_that_is_submitted_to_a_cluster_uses_that_cluster(
    clips: Path, expected: dict[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    ray.shutdown()
    # A test's Cluster has no agent that starts jobs, so this one is a real one.
    ray_start = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--port=0",
        "--num-cpus=2",
        "--block",
    ]
    ray_start += ["--include-dashboard=true", f"--dashboard-port={port}"]
    with (tmp_path / "ray.log").open("w") as log:
        cluster = subprocess.Popen(ray_start, stdout=log, stderr=log)
    try:
        batch = [sys.executable, *command(clips, tmp_path / "out", "--engine", "ray")[1:]]
        submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
        submit += ["--address", f"http://127.0.0.1:{port}", "--working-dir", ".", "--", *batch]
        printed = "No available agent"
        for _ in range(30):  # the agent that starts jobs comes up after the cluster
            if not any(text in printed for text in ("No available agent", "Failed to connect")):
                break
            ended = subprocess.run(
                submit, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False
            )
            printed = ended.stdout + ended.stderr
            time.sleep(1)
    finally:
        cluster.terminate()
        cluster.wait(60)
    assert "exit code 1" in printed, printed  # one clip is damaged, one is no video
    table = json.loads((tmp_path / "out" / "batch.json").read_text())
    assert (table["engine"], table["counts"]["done"], table["counts"]["put_aside"]) == ("ray", len(GOOD), 1)
    assert hashes(tmp_path / "out") == expected
