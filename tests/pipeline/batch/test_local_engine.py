from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.batch.batch import BatchOptions, run_batch
from pipeline.batch.inputs import collect_jobs
from pipeline.batch.local_engine import plan_workers
from pipeline.core.errors import ConfigError
from run_pipeline import main
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


def options(output: Path, workers: int = 2, **changes: object) -> BatchOptions:
    values: dict[str, object] = {"workers": workers, "cpus_per_worker": 1, **changes}
    return BatchOptions(str(output), settings(), **values)  # type: ignore[arg-type]


@pytest.mark.timeout(300)
def test_local_workers_write_the_bytes_of_run(
    clips: Path, expected: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report, driver = run_batch(collect_jobs([str(clips)], str(out), settings()), options(out))
    assert {o.name: o.status for o in report.outcomes} == {
        **dict.fromkeys(GOOD, "done"),
        DAMAGED: "damaged",
        TEXT: "put_aside",
    }
    assert hashes(out) == expected
    assert report.exit_code == 1
    assert sum(load.videos for load in driver.loads.values()) == 8
    table = json.loads((out / "batch.json").read_text())
    assert table["counts"]["done"] == 6
    assert table["frames"] == sum(video["frames"] for video in table["videos"])
    assert {video["attempts"] for video in table["videos"]} == {1}


@pytest.mark.timeout(300)
def test_a_worker_killed_at_random_moments_and_a_video_that_kills_its_worker(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("a", "poison", "b"):
        make_long_clip(folder, name, 48)
    wanted = one_by_one(folder, tmp_path / "wanted")
    jobs = collect_jobs([str(folder)], str(out), settings())
    with killing(out, "poison") as killed, killing(out, "a", times=1, seed=1):
        report, _ = run_batch(jobs, options(out, max_attempts=2))
    found = {outcome.name: outcome for outcome in report.outcomes}
    assert {name: outcome.status for name, outcome in found.items()} == {
        "a": "done",
        "b": "done",
        "poison": "put_aside",
    }
    assert len(killed) == 2
    assert "killed by SIGKILL" in str(found["poison"].error)
    assert {name: hashes(out)[name] for name in "ab"} == {name: wanted[name] for name in "ab"}
    report, _ = run_batch(jobs, options(out))
    assert sorted(outcome.status for outcome in report.outcomes) == ["put_aside", "skipped", "skipped"]
    report, _ = run_batch(jobs, options(out, retry_failed=True))
    assert sorted(outcome.status for outcome in report.outcomes) == ["done", "skipped", "skipped"]
    assert hashes(out) == wanted
    assert report.exit_code == 0


Start = Callable[[Path, Path], "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """A function that starts a batch; those that still run at the end of the test are ended."""
    with ExitStack() as stack:

        def begin(folder: Path, out: Path) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                command(folder, out), cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield begin


def wait_for_work(out: Path, name: str) -> int:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if (out / name / "checkpoint").is_dir() and (pids := holders(out, name)):
            return pids[0]
        time.sleep(0.05)
    raise TimeoutError(f"nobody began with {name}")


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.timeout(300)
def test_a_killed_driver_takes_its_workers_with_it_and_ctrl_c_can_be_gone_on_from(
    start: Start, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for name, frames in (("a", 64), ("b", 500)):  # b must still be under way when the signal comes
        make_long_clip(folder, name, frames)
    wanted = one_by_one(folder, tmp_path / "wanted")
    driver = start(folder, out)
    worker = wait_for_work(out, "a")
    kill(driver.pid)
    driver.wait()
    second = start(folder, out)
    wait_for_work(out, "b")
    second.send_signal(signal.SIGINT)
    assert second.wait(60) == 130
    assert not kill(worker)
    table = json.loads((out / "batch.json").read_text())
    assert table["interrupted"]
    third = start(folder, out)
    assert third.wait(90) == 0
    assert hashes(out) == wanted


def test_the_command_says_what_it_would_do_and_refuses_bad_usage(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(clips, tmp_path / "out")[2:]
    assert main([*arguments, "--dry-run", "--shard", "2/4"]) == 0
    assert "2 of 2 videos to do" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    for wrong in (["--shard", "9/4"], ["--engine", "slurm"], ["--workers", "0"]):
        assert main([*arguments, *wrong]) == 2


def test_gpus_and_cores_are_shared_out() -> None:
    assert plan_workers(None, None, None, gpus=list("01234567"), cores=64).devices == tuple("01234567")
    assert plan_workers(None, None, 2, gpus=list("0123"), cores=8).devices == ("0,1", "2,3")
    assert plan_workers(4, None, 0, gpus=["0"], cores=8).devices == ("",) * 4
    assert plan_workers(None, 2, None, gpus=[], cores=8).devices == (None,) * 4
    assert plan_workers(3, None, None, gpus=["0"], cores=8).threads == 2
    with pytest.raises(ConfigError, match="--gpus-per-worker 2: this machine has 1"):
        plan_workers(None, None, 2, gpus=["0"], cores=8)
