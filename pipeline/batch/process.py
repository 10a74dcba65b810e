"""A worker in a process of its own: ``python -m pipeline.batch.process FD``, JSON over a socket.

It reads the settings and then one job at a time, and answers with the number of frames while it works and with the
outcome at the end. It ends when the driver has gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from pipeline.batch.jobs import Outcome, VideoJob, WorkerSettings, to_dict
from pipeline.batch.worker import Worker

_PROGRESS_SECONDS = 0.5
_PARENT_SECONDS = 0.5
_GRACE_SECONDS = 20.0


def main(connection: Connection) -> None:
    """Do jobs until the driver closes the connection."""
    parent = os.getppid()
    threading.Thread(target=end_with_parent, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the driver, which decides
    worker = Worker(WorkerSettings(**_receive(connection)))
    _send(connection, {"ready": worker.name})
    while True:
        try:
            job = VideoJob(**_receive(connection))
        except (EOFError, OSError):
            return
        _send(connection, {"outcome": to_dict(_do(worker, job, connection))})


def _do(worker: Worker, job: VideoJob, connection: Connection) -> Outcome:
    last = 0.0

    def report(frames: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_SECONDS:
            last = now
            _send(connection, {"frames": frames})

    try:
        previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return worker.do(job, report)
        finally:
            signal.signal(signal.SIGTERM, previous)
    except KeyboardInterrupt:
        return Outcome(job.name, "interrupted", "stopped before its first frame", worker=worker.name)


def end_with_parent(parent: int) -> None:
    """Stop like Ctrl-C when the driver has gone, and for good if that does not end the process soon."""
    while os.getppid() == parent:
        time.sleep(_PARENT_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os._exit(1)


def _receive(connection: Connection) -> dict[str, Any]:
    return dict(json.loads(connection.recv_bytes()))


def _send(connection: Connection, values: dict[str, Any]) -> None:
    try:
        connection.send_bytes(json.dumps(values).encode())
    except OSError:  # the driver has gone: end_with_parent stops the run
        return


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
