"""Workers as Ray actors. Ray places them on GPUs and cores and tells when one dies; the driver does the rest.

An actor keeps the model and takes one video at a time; what passes through Ray is the job, the outcome and a
number of frames. The driver polls the numbers, a few at a time, so that a thousand actors do not flood it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.exceptions

from pipeline.batch.engine import Event
from pipeline.batch.jobs import Outcome, VideoJob, WorkerSettings, outcome_from, to_dict
from pipeline.batch.worker import Worker
from pipeline.core.errors import ConfigError, InputError

ADDRESS_SECONDS = 18.0
_GROW_SECONDS = 3.0
_POLL_SECONDS = 1.0
_POLLED_AT_ONCE = 100
_EXIT_WAIT_SECONDS = 3.0


class RayWorker:
    """The actor: :class:`pipeline.batch.worker.Worker` with its control methods in a thread of their own."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._worker = Worker(WorkerSettings(**settings))
        self._job, self._frames = "", 0
        self._stop = False

    def hello(self) -> dict[str, str]:
        """Where it runs, once it is ready."""
        return {"name": self._worker.name, "node": ray.get_runtime_context().get_node_id()}

    def do(self, job: dict[str, Any]) -> dict[str, Any]:
        """Do one video."""
        self._job, self._frames = job["name"], 0
        try:
            return to_dict(self._worker.do(VideoJob(**job), self._count))
        except KeyboardInterrupt:
            return to_dict(Outcome(job["name"], "interrupted", "stopped", worker=self._worker.name))

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def frames(self) -> tuple[str, int]:
        """The name of the current video and its frames that are done."""
        return self._job, self._frames

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def stop(self) -> None:
        """Stop the current video at its next frame."""
        self._stop = True

    def _count(self, frames: int) -> None:
        self._frames = frames
        if self._stop:
            raise KeyboardInterrupt


def connect(address: str | None, timeout_seconds: float = ADDRESS_SECONDS) -> None:
    """Connect to a cluster, or start one on this machine.

    Args:
        address: ``auto``, ``ray://host:port``, ``host:port`` or ``local``; None for ``RAY_ADDRESS``, or ``local``
            where that is not set.
        timeout_seconds: How long an address has to answer.

    Raises:
        InputError: Nothing answers there.
    """
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        # Not in a thread: the processes of a cluster end with the thread that started them.
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    else:
        _reach(address, timeout_seconds)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray installs a handler of its own


def _reach(address: str, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    _knock(address, min(5.0, timeout_seconds))
    failed: list[BaseException] = []

    def initialize() -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except Exception as error:  # noqa: BLE001  Ray raises errors of many libraries here
            failed.append(error)

    thread = threading.Thread(target=initialize, daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if thread.is_alive() or failed:
        reason = " ".join(str(failed[0]).split())[:200] if failed else f"no answer in {timeout_seconds:.0f} s"
        raise InputError(
            f"--address {address}: no Ray cluster there ({reason}); start one with 'ray start --head', "
            "or use --address local"
        )


def _knock(address: str, timeout_seconds: float) -> None:
    """Find out quickly that nobody listens: Ray's own connection tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address == "ray://":
        raise InputError("--address ray://: has no host; write it as ray://HOST:10001")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout_seconds).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--address {address}: no Ray cluster answers there ({error}); start one with 'ray start --head', "
            "or use --address local"
        ) from error


@dataclass(slots=True)
class _Actor:
    """An actor and what the driver waits for from it."""

    name: str
    handle: Any
    ready: bool = False
    node: str = ""
    host: str = ""
    job: VideoJob | None = None


class RayEngine:
    """Runs actors on a connected cluster.

    Args:
        settings: For every worker.
        workers: Wanted number; None for as many as the cluster has room for, also when nodes join.
        cpus_per_worker: Cores of each.
        gpus_per_worker: GPUs of each, may be a fraction; None for 1 where the cluster has GPUs, else 0.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        workers: int | None = None,
        cpus_per_worker: int | None = None,
        gpus_per_worker: float | None = None,
    ) -> None:
        self._settings = replace(settings, threads=cpus_per_worker or 1)
        self._wanted = workers
        if gpus_per_worker is None:
            gpus_per_worker = 1.0 if ray.cluster_resources().get("GPU", 0) > 0 else 0.0
        self._cpus = cpus_per_worker or 1
        self._gpus = gpus_per_worker
        self._actors: dict[str, _Actor] = {}
        self._waits: dict[Any, tuple[str, str]] = {}
        self._number = 0
        self._stopping = False
        self._grown = self._polled = float("-inf")
        self._poll_from = 0

    def start(self) -> None:
        """Ask for the actors.

        Raises:
            ConfigError: No node of the cluster can hold one, and no number was asked for.
        """
        if self._wanted is None and self._room() == 0:
            raise ConfigError(
                f"no node of the Ray cluster has {self._cpus} CPUs and {self._gpus:g} GPUs; "
                "change --cpus-per-worker or --gpus-per-worker"
            )
        self._grow()

    def starting(self) -> int:
        """Actors that are not ready yet; they may wait for room on the cluster."""
        return sum(not actor.ready for actor in self._actors.values())

    def idle(self) -> list[str]:
        """Actors that are ready and have nothing to do."""
        return [actor.name for actor in self._actors.values() if actor.ready and actor.job is None]

    def submit(self, worker: str, job: VideoJob) -> None:
        """Give an actor a video."""
        actor = self._actors[worker]
        actor.job = job
        self._waits[actor.handle.do.remote(to_dict(job))] = ("outcome", worker)

    def wait(self, seconds: float) -> list[Event]:
        """News of the actors; missing ones are replaced."""
        if not self._stopping:
            self._grow()
        self._poll()
        if not self._waits:
            time.sleep(seconds)
            return []
        count = len(self._waits)
        done, _ = ray.wait(list(self._waits), num_returns=1, timeout=seconds)
        if done and count > 1:  # whatever else is there already
            done, _ = ray.wait(list(self._waits), num_returns=count, timeout=0)
        return [event for ref in done for event in self._read(ref)]

    def interrupt(self) -> None:
        """Ask every actor to stop at its next frame."""
        self._stopping = True
        for actor in self._actors.values():
            with contextlib.suppress(ray.exceptions.RayError):
                actor.handle.stop.remote()

    def close(self) -> None:
        """Kill the actors. The connection stays: it is the caller's."""
        self._stopping = True
        for actor in self._actors.values():
            with contextlib.suppress(ray.exceptions.RayError, ValueError):
                ray.kill(actor.handle)
        self._actors.clear()
        self._waits.clear()

    def _grow(self) -> None:
        """Replace dead actors, and use nodes that joined."""
        now = time.monotonic()
        if now - self._grown < _GROW_SECONDS:
            return
        self._grown = now
        wanted = self._wanted if self._wanted is not None else self._room()
        for _ in range(wanted - len(self._actors)):
            self._number += 1
            name = f"actor-{self._number}"
            handle = _actor_class(self._cpus, self._gpus).remote(to_dict(self._settings))
            self._actors[name] = _Actor(name, handle)
            self._waits[handle.hello.remote()] = ("hello", name)

    def _room(self) -> int:
        """How many actors fit on the nodes that are alive."""
        room = 0
        for node in ray.nodes():
            if not node["Alive"]:
                continue
            fits = [int(node["Resources"].get("CPU", 0) / self._cpus)]
            if self._gpus:
                gpus = node["Resources"].get("GPU", 0)
                fits.append(int(gpus) * int(1 / self._gpus) if self._gpus < 1 else int(gpus / self._gpus))
            room += min(fits)
        return room

    def _poll(self) -> None:
        """Ask some of the busy actors how far they are."""
        now = time.monotonic()
        if now - self._polled < _POLL_SECONDS:
            return
        self._polled = now
        asked = {name for kind, name in self._waits.values() if kind == "frames"}
        busy = [actor for actor in self._actors.values() if actor.job is not None and actor.name not in asked]
        start = self._poll_from % len(busy) if busy else 0
        for actor in (busy[start:] + busy[:start])[:_POLLED_AT_ONCE]:
            self._waits[actor.handle.frames.remote()] = ("frames", actor.name)
        self._poll_from += _POLLED_AT_ONCE

    def _read(self, ref: Any) -> list[Event]:
        kind, name = self._waits.pop(ref, ("", ""))
        actor = self._actors.get(name)
        if actor is None:
            return []
        try:
            values = ray.get(ref)
        except ray.exceptions.RayError as error:
            # The same death shows in every call; the one that holds the video (or the first hello) counts.
            return [] if kind == "frames" else [self._lost(actor, kind, error)]
        if kind == "hello":
            actor.ready, actor.node, actor.host = True, values["node"], values["name"]
            return []
        if kind == "frames":
            current, frames = values  # of a video that may have ended meanwhile
            is_current = actor.job is not None and actor.job.name == current
            return [Event("progress", name, actor.job, frames=frames)] if is_current else []
        job, actor.job = actor.job, None
        return [Event("finished", name, job, outcome_from(values))]

    def _lost(self, actor: _Actor, kind: str, error: Exception) -> Event:
        del self._actors[actor.name]
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(actor.handle)
        if kind == "hello":  # replaced after a while: its node may go on refusing
            return Event("unusable", actor.name, reason=_explain_start(error))
        self._grown = float("-inf")
        gone = _node_has_gone(actor.node, error)
        where = f"{actor.host}, whose node has left" if gone else actor.host
        reason = f"{where}: {type(error).__name__}"
        return Event("lost", actor.name, actor.job, reason=reason, blameless=gone)


def _actor_class(cpus: int, gpus: float) -> Any:
    """The actor class with its resources."""
    remote = ray.remote(
        num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0, concurrency_groups={"control": 2}
    )
    return remote(RayWorker)


def _node_has_gone(node: str, error: Exception) -> bool:
    """Whether an actor died with its node; waits a little, as the cluster notices that a moment later."""
    if "its node has died" in str(error):
        return True
    deadline = time.monotonic() + _EXIT_WAIT_SECONDS
    while time.monotonic() < deadline:
        if not any(found["NodeID"] == node and found["Alive"] for found in ray.nodes()):
            return True
        time.sleep(0.5)
    return False


def _explain_start(error: Exception) -> str:
    text = " ".join(str(error).split())
    if missing := re.findall(r"No module named '([\w.]+)'", text):
        return (
            f"a node of the cluster has no Python package '{missing[-1]}': install liftstream on every node, or "
            "start with 'ray job submit --working-dir . -- python run_pipeline.py batch ...'"
        )
    return text[-300:]
