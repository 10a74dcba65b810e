"""Runs that are killed: a process that imports everything once and forks a child for every run.

Used by ``tests/test_kill_and_resume.py`` and run as a program: ``python -m tests.killing`` reads one JSON request
per line and answers with one JSON line. A child is killed after ``kill_after`` seconds of CPU time, unless it ends
first: how far a run has come by then depends little on what else the machine does.
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
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def run_in_child(request: dict[str, Any]) -> tuple[int, float]:
    """Run a video in a forked child.

    Args:
        request: ``source``, ``output``, ``settings`` (``key=value`` texts), ``resume``, ``masks``, and
            ``kill_after`` in CPU seconds or None; ``signal`` is the signal's number, SIGKILL by default.

    Returns:
        The child's exit code, or minus the signal's number, and its CPU seconds.
    """
    child = os.fork()
    if child == 0:
        os._exit(_run(request))
    kill_after = request.get("kill_after")
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        if kill_after is not None and _cpu_seconds(child) >= kill_after:
            os.kill(child, request.get("signal", signal.SIGKILL))
            kill_after = None
        time.sleep(_POLL_SECONDS)


def _cpu_seconds(process: int) -> float:
    """CPU time of a process and its threads so far, in user and system mode."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def _run(request: dict[str, Any]) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
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
        code, cpu_seconds = run_in_child(request)
        sys.stdout.write(json.dumps({"code": code, "cpu_seconds": cpu_seconds}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
