"""Runs that are killed: a process that imports everything once and forks a child for every run.

Used by ``tests/test_kill_and_resume.py`` and run as a program: ``python -m tests.killing`` reads one JSON request
per line and answers with one JSON line. A child is killed after ``kill_after`` seconds, unless it ends first.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.core.errors import LiftstreamError
from pipeline.flow import load_flow_config, run
from stages.extract import Extractor

_POLL_SECONDS = 0.005


def run_in_child(request: dict[str, Any]) -> int:
    """Run a video in a forked child.

    Args:
        request: ``source``, ``output``, ``settings`` (``key=value`` texts), ``resume``, ``masks``, and
            ``kill_after`` in seconds or None; ``signal`` is the signal's number, SIGKILL by default.

    Returns:
        The child's exit code, or minus the signal's number.
    """
    child = os.fork()
    if child == 0:
        os._exit(_run(request))
    deadline = None if request.get("kill_after") is None else time.monotonic() + request["kill_after"]
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, request.get("signal", signal.SIGKILL))
            deadline = None
        time.sleep(_POLL_SECONDS)


def _run(request: dict[str, Any]) -> int:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = load_flow_config(None, request["settings"])
    try:
        result = run(
            request["source"],
            request["output"],
            config,
            extractor=Extractor(config.extract) if config.extract.enabled else None,
            resume=request.get("resume", False),
            masks=Path(request["masks"]) if request.get("masks") else None,
        )
    except LiftstreamError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 1 if result.status == "damaged" else 0


def main() -> None:
    """Answer requests until the input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        started = time.monotonic()
        code = run_in_child(request)
        sys.stdout.write(json.dumps({"code": code, "seconds": time.monotonic() - started}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
