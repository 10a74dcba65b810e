"""Decode for streams: frames of an address, a camera or a pipe, from :mod:`stages.decode.stream_input`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.core.errors import ConfigError, MediaError
from pipeline.core.records import Frame
from pipeline.formats.video import to_rgb
from stages.decode.address import StreamAddress
from stages.decode.config import DecodeConfig
from stages.decode.damage import Damage
from stages.decode.stream_input import StreamInput

_MAX_WARNINGS = 100


class StreamDecoder:
    """The frames of one stream. It cannot be read twice, so there is no ``reset`` and no ``state``.

    Invariant: at the end, frames received = frames yielded + frames dropped; without ``decode.live.enabled`` none
    is dropped. ``index`` counts the frames received from the first one that is yielded, so dropped frames leave
    holes.

    Args:
        config: What to read; ``start_seconds`` must be 0.
        address: The stream. It is opened here, and its first frame waited for.
        notice: Called with a line for the user when the stream stalls, breaks or comes back.

    Attributes:
        info: Facts about the stream.
        current_index: Index of the last frame that was yielded.

    Raises:
        ConfigError: A setting that a stream does not have.
        MediaError: It cannot be opened, or holds no video.
    """

    def __init__(
        self, config: DecodeConfig, address: StreamAddress, notice: Callable[[str], object] = lambda line: None
    ) -> None:
        if config.start_seconds:
            raise ConfigError(f"{address.shown}: a stream has no earlier times; leave decode.start_seconds at 0")
        self.config = config
        self.address = address
        self.current_index: int | None = None
        self._lines: list[str] = []
        self._first: Frame | None = None
        self._waited: Callable[[float], object] = lambda seconds: None
        self._stopped: Callable[[], bool] = lambda: False
        self._input = StreamInput(address, config, notice)
        self.info = self._input.open()

    def __call__(self) -> Iterator[Frame]:
        """The frames as they come, until the stream ends or :meth:`close`."""
        try:
            if self._first is not None:
                yield self._first
            while (frame := self._next()) is not None:
                yield frame
        finally:
            self._input.close()

    def first_frame(self) -> Frame:
        """The first frame ahead of the call, which then begins with it.

        Raises:
            MediaError: The stream ended before.
        """
        self._first = self._first or self._next()
        if self._first is None:
            raise MediaError(f"{self.address.shown}: ended before its first frame")
        return self._first

    def stop_when(self, stopped: Callable[[], bool]) -> None:
        """End when any of the conditions given so far is true; asked ten times a second."""
        before = self._stopped
        self._stopped = lambda: before() or stopped()

    def report_waits_to(self, waited: Callable[[float], object]) -> None:
        """Call ``waited`` with the seconds that each frame was waited for."""
        self._waited = waited

    def finished(self, index: int) -> None:
        """Say that a frame has passed all stages, which makes room for another one."""
        self._input.finished(index)

    def close(self) -> None:
        """Stop reading the stream."""
        self._input.close()

    @property
    def damage(self) -> Damage | None:
        """How the stream broke off for good; None if it ended or was stopped."""
        problem = self._input.problem
        received = self._input.counts.received
        return None if problem is None else Damage(0, received, (), 0, ends_early=problem)

    @property
    def broken(self) -> str | None:
        """One line that names the stream and what happened, or None."""
        return None if self.damage is None else f"{self.address.shown}: {self.damage.summary()}"

    @property
    def warnings(self) -> list[str]:
        """What was unusual about the stream, one line each."""
        lines = list(self._lines)
        if self._input.num_outages:
            lines.append(
                f"{self.address.shown}: {self._input.num_outages} times without a connection, see run.json"
            )
        counts = self._input.counts
        if counts.time_jumps:
            lines.append(
                f"{self.address.shown}: the stream's time jumps {counts.time_jumps} times, by "
                f"{counts.jumped_seconds:.1f} s in all; frames may be missing there"
            )
        if self._input.bad_packets:
            lines.append(f"{self.address.shown}: {self._input.bad_packets} packets could not be decoded")
        return lines

    def expected_frames(self) -> None:
        """Nobody knows how long a stream is."""
        return

    def first_index(self) -> int:
        """Frames are counted from the first that is processed."""
        return 0

    def report(self) -> dict[str, Any]:
        """Facts for ``run.json``: frames received, processed and dropped, latencies, outages."""
        return {
            "backend": "pyav",
            "mode": "newest frame" if self.config.live.enabled else "every frame",
            "broken": self.broken,
            "frames_missing": 0,
            "num_gaps": 0,
            "gaps": [],
            **self._input.report(),
        }

    def _next(self) -> Frame | None:
        started = time.perf_counter()
        taken = self._input.take(self._stopped)
        self._waited(time.perf_counter() - started)
        if taken is None:
            return None
        end = self.config.end_seconds
        if end is not None and taken.seconds >= end:
            self._input.give_back(taken)
            return None
        self.current_index = taken.index
        image = to_rgb(taken.raw, self.info, self._warn)
        duration = float(taken.raw.duration * taken.raw.time_base) if taken.raw.duration else None
        return Frame(image, taken.index, taken.seconds, duration)

    def _warn(self, line: str) -> None:
        if line not in self._lines and len(self._lines) < _MAX_WARNINGS:
            self._lines.append(line)
