"""Worker processes on this machine: one per GPU, or per group of cores."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from pipeline.batch.engine import Event
from pipeline.batch.jobs import VideoJob, WorkerSettings, outcome_from, to_dict
from pipeline.core.errors import ConfigError, OutputError

_CORES_PER_WORKER = 4
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_ROOT = Path(__file__).resolve().parents[2]
_LOG_TAIL_BYTES = 2000


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """How this machine is shared out.

    Attributes:
        threads: Threads of each worker.
        devices: ``CUDA_VISIBLE_DEVICES`` of each worker; None leaves it as it is.
    """

    threads: int
    devices: tuple[str | None, ...]


def plan_workers(
    workers: int | None,
    cpus_per_worker: int | None,
    gpus_per_worker: float | None,
    *,
    gpus: Sequence[str],
    cores: int,
) -> WorkerPlan:
    """Share out the GPUs and cores of this machine.

    Args:
        workers: Wanted number; by default one per GPU (or share of one), else one per four cores.
        cpus_per_worker: Threads of each; by default the cores are shared out evenly.
        gpus_per_worker: GPUs of each, may be a fraction; 0 for none; by default 1 where there are GPUs.
        gpus: Names of the GPUs, as in ``CUDA_VISIBLE_DEVICES``.
        cores: Cores of this machine.

    Raises:
        ConfigError: More GPUs per worker than there are.

    >>> plan_workers(None, None, None, gpus=["0", "1"], cores=16)
    WorkerPlan(threads=8, devices=('0', '1'))
    >>> plan_workers(None, None, 0.5, gpus=["0"], cores=16).devices
    ('0', '0')
    >>> plan_workers(None, None, None, gpus=[], cores=6)
    WorkerPlan(threads=6, devices=(None,))
    """
    if gpus_per_worker is not None and gpus_per_worker > len(gpus):
        raise ConfigError(f"--gpus-per-worker {gpus_per_worker:g}: this machine has {len(gpus)} GPUs")
    per_worker = (1.0 if gpus else 0.0) if gpus_per_worker is None else gpus_per_worker
    if per_worker == 0:
        default = max(1, cores // (cpus_per_worker or _CORES_PER_WORKER))
    elif per_worker < 1:
        default = len(gpus) * int(1 / per_worker)
    else:
        default = len(gpus) // int(per_worker)
    count = workers or default
    devices = [_devices(number, per_worker, gpus) for number in range(count)]
    return WorkerPlan(cpus_per_worker or max(1, cores // count), tuple(devices))


def _devices(number: int, per_worker: float, gpus: Sequence[str]) -> str | None:
    if per_worker == 0:
        return "" if gpus else None
    if per_worker < 1:
        return gpus[number % len(gpus)]
    size = int(per_worker)
    first = number % (len(gpus) // size) * size
    return ",".join(gpus[first : first + size])


def gpus_here() -> list[str]:
    """Names of the GPUs that this process may use."""
    count = torch.cuda.device_count()
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible[:count] if visible else [str(number) for number in range(count)]


@dataclass(slots=True)
class _Slot:
    """A place for a worker, filled again when its process dies."""

    name: str
    device: str | None
    log: Path
    process: subprocess.Popen[bytes] | None = None
    connection: Connection | None = None
    ready: bool = False
    job: VideoJob | None = None


class LocalEngine:
    """Runs :mod:`pipeline.batch.process` in as many processes as the plan says.

    Args:
        settings: For every worker.
        plan: From :func:`plan_workers`.
        logs: Folder for what the workers print.
        label: Sets the logs of several batches with one OUT apart.
    """

    def __init__(self, settings: WorkerSettings, plan: WorkerPlan, logs: Path, label: str = "") -> None:
        self._settings = replace(settings, threads=plan.threads)
        self._plan = plan
        self._stopping = False
        names = [f"worker-{label}{number}" for number in range(len(plan.devices))]
        self._slots = {
            name: _Slot(name, device, logs / f"{name}.log")
            for name, device in zip(names, plan.devices, strict=True)
        }

    def start(self) -> None:
        """Start every process."""
        for slot in self._slots.values():
            self._start(slot)

    def starting(self) -> int:
        """Processes that are not ready yet."""
        return sum(slot.connection is not None and not slot.ready for slot in self._slots.values())

    def idle(self) -> list[str]:
        """Workers that are ready and have nothing to do."""
        return [slot.name for slot in self._slots.values() if slot.ready and slot.job is None]

    def submit(self, worker: str, job: VideoJob) -> None:
        """Give a worker a video."""
        slot = self._slots[worker]
        assert slot.connection is not None
        slot.job = job
        try:
            slot.connection.send_bytes(json.dumps(to_dict(job)).encode())
        except OSError:
            return  # it has died: wait() finds out

    def wait(self, seconds: float) -> list[Event]:
        """News of the workers; those that had died at the last call are replaced."""
        for slot in self._slots.values():
            if slot.connection is None and not self._stopping:
                self._start(slot)
        connections = {slot.connection: slot for slot in self._slots.values() if slot.connection is not None}
        if not connections:
            time.sleep(seconds)
            return []
        events = []
        for ready in wait(list(connections), seconds):
            assert isinstance(ready, Connection)
            events += self._read(connections[ready])
        return events

    def interrupt(self) -> None:
        """Send SIGTERM to the workers that are at work."""
        self._stopping = True
        for slot in self._slots.values():
            if slot.job is not None and slot.process is not None and slot.process.poll() is None:
                slot.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Kill every process that is left."""
        self._stopping = True
        for slot in self._slots.values():
            if slot.connection is not None:
                slot.connection.close()
                slot.connection = None
            if slot.process is not None:
                slot.process.kill()
                slot.process.wait()

    def _start(self, slot: _Slot) -> None:
        ours, theirs = socket.socketpair()
        environment = dict(os.environ)
        environment.update(dict.fromkeys(_THREAD_VARIABLES, str(self._plan.threads)))
        paths = [str(_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        if slot.device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot.device
        try:
            slot.log.parent.mkdir(parents=True, exist_ok=True)
            with slot.log.open("wb") as log, theirs:
                slot.process = subprocess.Popen(
                    [sys.executable, "-m", "pipeline.batch.process", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            raise OutputError(f"{slot.log}: cannot start a worker ({error.strerror})") from error
        slot.connection = Connection(ours.detach())
        slot.ready, slot.job = False, None
        slot.connection.send_bytes(json.dumps(to_dict(self._settings)).encode())

    def _read(self, slot: _Slot) -> list[Event]:
        assert slot.connection is not None
        try:
            values = json.loads(slot.connection.recv_bytes())
        except (EOFError, OSError):
            return [self._lost(slot)]
        if "frames" in values:
            return [Event("progress", slot.name, slot.job, frames=values["frames"])]
        if "ready" in values:
            slot.ready = True
            return []
        job, slot.job = slot.job, None
        return [Event("finished", slot.name, job, outcome_from(values["outcome"]))]

    def _lost(self, slot: _Slot) -> Event:
        assert slot.connection is not None
        assert slot.process is not None
        slot.connection.close()
        slot.connection = None
        slot.process.kill()
        reason = _ending(slot.process.wait(), slot.log)
        event = Event("lost" if slot.ready else "unusable", slot.name, slot.job, reason=reason)
        slot.job, slot.ready = None, False
        return event


def _ending(code: int, log: Path) -> str:
    """How a process ended, with the last line it printed."""
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return how
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"{how}: {last[:200]}" if last else how
