"""What ``run`` adds for streams: the preview, tracks as lines, and the end at Ctrl-C."""

from __future__ import annotations

import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from tqdm import tqdm

from pipeline.assembly import Stages
from pipeline.core.errors import InputError
from pipeline.core.records import Packet
from pipeline.formats.track_lines import track_lines_to
from pipeline.preview import Preview, parse_bind

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def parse_duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``10m``, ``2h`` or ``1d``.

    Raises:
        InputError: Not a duration.

    >>> parse_duration("10m"), parse_duration("1.5h")
    (600.0, 5400.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if found is None or float(found[1]) <= 0:
        raise InputError(f"--keep-last {text}: write it as 90s, 10m, 2h or 1d")
    return float(found[1]) * _UNITS[found[2]]


def live_settings(
    max_latency: float | None, reconnect: int | None, segment_seconds: float | None, keep_last: str | None
) -> list[str]:
    """The options as ``--set`` values."""
    given: dict[str, object | None] = {
        "decode.live.max_latency_seconds": max_latency,
        "decode.live.reconnect": reconnect,
        "write.segment_seconds": segment_seconds,
        "write.keep_last_seconds": None if keep_last is None else parse_duration(keep_last),
    }
    return [f"{key}={value}" for key, value in given.items() if value is not None]


@dataclass(slots=True)
class Outputs:
    """Where results go while the run runs, beside its folder.

    Attributes:
        preview: ``[ADDRESS]:PORT`` for the preview, or None.
        tracks: A file or ``-`` for tracks as JSON lines, or None.
    """

    preview: str | None = None
    tracks: str | None = None
    _sinks: list[Callable[[Packet], None]] = field(default_factory=list)
    _stages: Stages | None = None

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Open the file and the server, and close them at the end."""
        with ExitStack() as stack:
            if self.tracks is not None:
                self._sinks.append(stack.enter_context(track_lines_to(self.tracks, sys.stdout, notice)))
            if self.preview is not None:
                server = stack.enter_context(Preview(*parse_bind(self.preview), self._counts))
                notice(f"preview at {server.address}")
                self._sinks.append(lambda packet: _show(server, packet))
            yield

    def start(self, stages: Stages) -> None:
        """Take note of the stages of the run."""
        self._stages = stages

    def write(self, packet: Packet) -> None:
        """Give a packet to all of them."""
        for sink in self._sinks:
            sink(packet)

    def _counts(self) -> dict[str, Any]:
        report = {} if self._stages is None else self._stages.decode.report()
        latency = report.get("latency_seconds") or {}
        return {"dropped": report.get("dropped"), "latency_p95": latency.get("p95")}


def _show(server: Preview, packet: Packet) -> None:
    image = packet.frame.image if packet.annotated is None else packet.annotated
    server.show(image, packet.index, packet.frame.pts_seconds)


def notice(line: str) -> None:
    """One line on stderr, above the progress bar."""
    tqdm.write(line, file=sys.stderr)


@contextmanager
def first_signal_ends_the_stream(applies: bool) -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM once: stop reading and finish what was read; twice: interrupt.

    Args:
        applies: Whether the input is a stream; otherwise signals are left as they are.
    """
    ended = threading.Event()

    def end(signum: int, frame: FrameType | None) -> None:
        if ended.is_set():
            raise KeyboardInterrupt
        ended.set()
        sys.stderr.write("\nfinishing; once more to interrupt\n")

    if not applies:
        yield ended.is_set
        return
    previous = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ended.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
