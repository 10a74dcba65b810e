"""What OUT says about a video: finished, given up, or in another process's hands.

A video is finished when ``OUT/<name>/run.json`` says so and the list of files beside it has the hash that is
written there. Nothing else counts: no queue, no database, no listing of OUT. Two processes never work in one
folder at a time: each holds a lock of the operating system (``flock``) on ``OUT/.batch/locks/<name>`` while it
does. Such a lock ends with its process however that ends, so there are no stale locks to find, and network file
systems (NFS 4, Lustre with ``flock``, GPFS, CephFS) pass it on between machines.

::

    OUT/<name>/run.json              the commit record
    OUT/.batch/locks/<name>          exists while a process works on the video
    OUT/.batch/put-aside/<name>.json why a video was given up
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.assembly import FlowConfig
from pipeline.batch.inputs import job_config
from pipeline.batch.jobs import Outcome, VideoJob
from pipeline.batch.storage import Place, local_path, size_of
from pipeline.core.checkpoint import differing, find_snapshot
from pipeline.core.errors import OutputError
from pipeline.core.files import path_inside, sha256_of
from pipeline.run_record import content_identity
from pipeline.session import config_identity
from stages.write.folder import CHECKPOINT, FILE_LIST, PRODUCER, RECORD

BATCH_FOLDER = ".batch"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished run that lies in OUT.

    Attributes:
        status: ``done`` or ``damaged``.
        problem: What is missing, for ``damaged``.
        frames: Frames in the results.
        differences: How it differs from what is asked for now, one text each; empty where it does not.
    """

    status: str
    problem: str | None
    frames: int
    differences: list[str]


def finished_run(
    place: Place, job: VideoJob, config: FlowConfig, detector: Mapping[str, Any] | None = None
) -> Finished | None:
    """What a finished run of this name is, compared with what is asked for now; None where there is none.

    Compared are the config, the input, the labels, the detector, and weights that are given as a file. Not
    compared are the device and the versions of packages: a video that is finished stays finished on another
    machine.

    Args:
        place: OUT.
        job: The video.
        config: The batch's config.
        detector: The identity of the batch's detector, for a job without detections of its own.
    """
    content = place.read(job.name, RECORD)
    try:
        record = json.loads(content or b"")
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("producer") != PRODUCER:
        return None
    if record.get("status") not in ("done", "damaged") or not _list_is_whole(place, job, record):
        return None
    identity = record.get("identity", {})
    written_ns = _modified_ns(place, job)
    differences = [
        f"{key} ({old} -> {new})"
        for key, old, new in differing(identity.get("config", {}), config_identity(job_config(config, job)))
    ]
    if _is_other(job.source, identity.get("input"), written_ns):
        differences.append("the input's content")
    labels = identity.get("labels", {})
    if _is_other(job.masks, labels.get("masks"), written_ns):
        differences.append("the masks")
    if detector is not None and job.detections is None:
        if labels.get("detections") != detector:
            differences.append("the detector")
    elif _is_other(job.detections, labels.get("detections"), written_ns):
        differences.append("the detections")
    weights = weights_given(config)
    if weights is not None and identity.get("weights", {}).get("backbone") != weights:
        differences.append("the weights")
    return Finished(record["status"], record.get("problem"), int(record.get("frames", 0)), differences)


def _list_is_whole(place: Place, job: VideoJob, record: Mapping[str, Any]) -> bool:
    files = record.get("files")
    if not files:
        return files is None
    content = place.read(job.name, FILE_LIST)
    return content is not None and hashlib.sha256(content).hexdigest() == files.get("sha256")


def _modified_ns(place: Place, job: VideoJob) -> int | None:
    if place.path is None:
        return None
    found = size_of(str(place.path / job.name / RECORD))
    return None if found is None else found[1]


def _is_other(text: str | None, recorded: Mapping[str, Any] | None, written_ns: int | None) -> bool:
    """Whether a file is not the one on record; reads it only where its time allows that it was changed."""
    if text is None or recorded is None:
        return (text is None) != (recorded is None)
    path = local_path(text)
    if path is not None and path.is_dir():
        return dict(recorded) != content_identity(path)
    found = size_of(text)
    if found is None:  # cannot be seen from here: the worker looks again
        return False
    if recorded.get("bytes") != found[0]:
        return True
    if path is None or written_ns is None or found[1] < written_ns:
        return False
    return dict(recorded) != content_identity(path)


def weights_given(config: FlowConfig) -> str | None:
    """The hash of the backbone's weights, where the config names a file; None where the name says it all."""
    extract = config.extract
    if not extract.enabled or extract.weights is None or not Path(extract.weights).is_file():
        return None
    return _hash_of_file(extract.weights)


@lru_cache(maxsize=8)
def _hash_of_file(path: str) -> str:
    return sha256_of(Path(path))


def unfinished_is_other(folder: Path, differences_in: Mapping[str, Any]) -> list[str]:
    """How an unfinished run in a folder differs from this config: the dotted keys; empty where it can go on."""
    snapshot = find_snapshot(folder / CHECKPOINT)
    if snapshot is None:
        return []
    return [key for key, _, _ in differing(snapshot.identity.get("config", {}), differences_in)]


class PutAside:
    """The videos that were given up, one small file each.

    A record counts for the same input (size and time) and the same config.

    Args:
        place: OUT.
        config: The batch's config.
        detector: The identity of its detector, if it has one.
    """

    def __init__(self, place: Place, config: FlowConfig, detector: Mapping[str, Any] | None = None) -> None:
        self._place = place
        values = config_identity(config) if detector is None else [config_identity(config), dict(detector)]
        self._config = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def find(self, job: VideoJob) -> Outcome | None:
        """The outcome on record, if the video was given up as it is now."""
        content = self._place.read(BATCH_FOLDER, "put-aside", f"{job.name}.json")
        try:
            record = json.loads(content or b"")
            if record["key"] != self._key(job):
                return None
            error, attempts, worker = str(record["error"]), int(record["attempts"]), str(record["worker"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        return Outcome(job.name, "put_aside", error, attempts=attempts, worker=worker)

    def add(self, job: VideoJob, outcome: Outcome) -> None:
        """Record that a video was given up.

        Raises:
            OutputError: The record cannot be written.
        """
        values = {
            "input": job.source,
            "error": outcome.error,
            "attempts": outcome.attempts,
            "worker": outcome.worker,
            "key": self._key(job),
        }
        content = json.dumps(values, indent=2).encode() + b"\n"
        self._place.write(content, BATCH_FOLDER, "put-aside", f"{job.name}.json")

    def forget(self, job: VideoJob) -> None:
        """Remove a record, once the video is done."""
        self._place.remove(BATCH_FOLDER, "put-aside", f"{job.name}.json")

    def _key(self, job: VideoJob) -> list[Any]:
        found = size_of(job.source)
        return [None if found is None else list(found), self._config, job.start_seconds, job.end_seconds]


class Busy(Exception):
    """Another process holds the lock of a video; the message says which."""


@contextmanager
def video_lock(place: Place, name: str, warnings: list[str]) -> Iterator[None]:
    """Hold a video's lock. Behind a URL there is none: object stores have no locks.

    Args:
        place: OUT.
        name: The video's name.
        warnings: Gets a line where the file system has no locks, and none is held.

    Raises:
        Busy: Another process holds it.
        OutputError: The file for the lock cannot be made.
    """
    if place.path is None:
        yield
        return
    path = path_inside(place.path, BATCH_FOLDER, "locks", name)
    handle = _open_locked(path, warnings)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, worker_name().encode())
        yield
    finally:
        # Removed while it is held, so that nobody can hold a lock on a file that has gone; see _open_locked.
        path.unlink(missing_ok=True)
        os.close(handle)


def _open_locked(path: Path, warnings: list[str]) -> int:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror})") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 200, 0).decode("utf-8", "replace") or "another process"
            os.close(handle)
            raise Busy(f"{holder} is at work on it") from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(handle)
                raise OutputError(f"{path}: cannot be locked ({error.strerror})") from error
            warnings.append(f"{path.parent}: this file system has no locks; give each video to one batch only")
            return handle
        try:
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)  # the last holder removed the file while we waited for its lock: take the new one


def worker_name() -> str:
    """Names this process: ``host:pid``."""
    return f"{socket.gethostname()}:{os.getpid()}"


def own_file(shard: str | None) -> str:
    """Name of the table of a batch or of its shard.

    >>> own_file(None), own_file("3/16")
    ('batch.json', 'batch-3-of-16.json')
    """
    return "batch.json" if shard is None else f"batch-{PurePosixPath(shard.replace('/', '-of-')).name}.json"
