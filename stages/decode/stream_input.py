"""The input thread of a stream: reads it, opens it again when it breaks, and hands frames over through one slot.

With ``decode.live`` the newest frame is in the slot, and one that nobody has taken yet is dropped for it. Without
it the thread waits until its frame is taken, so that every frame is processed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pipeline.core.background import BackgroundReader
from pipeline.core.errors import MediaError
from pipeline.core.records import VideoInfo
from stages.decode.address import StreamAddress
from stages.decode.config import DecodeConfig
from stages.decode.connection import BrokenStreamError, Connection, StreamFrame
from stages.decode.in_flight import InFlightLimit
from stages.decode.stream_clock import Pacer, StreamClock
from stages.decode.stream_counts import Counts, Outage

MAX_OUTAGES: Final = 100
"""Outages that are kept one by one; later ones are only counted."""
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 8.0
_SILENCE_SECONDS: Final = 15.0
"""After so long without a frame or another line, a line says that the input is waited for."""
_CHECK_SECONDS: Final = 0.1
_REPEATED_SECONDS: Final = 60.0
"""How far back a playlist's server may begin again; times that are further back are those of another clock."""
_MISSING_SECONDS: Final = 0.5
"""A step in time that is longer, and longer than five frames, is worth a warning."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A frame that goes to the stages.

    Attributes:
        raw: The PyAV frame.
        index: Frames received before it, counted from the first one that was taken.
        seconds: Presentation time, 0 for the first frame.
    """

    raw: Any
    index: int
    seconds: float


@dataclass(slots=True)
class _Arrived:
    raw: Any
    number: int
    seconds: float
    arrival: float


@dataclass(slots=True)
class _Position:
    """Where the stream is, for the thread alone."""

    last_stream_seconds: float | None = None
    number: int = 0
    attempts: int = 0
    broken_since: float | None = None
    reason: str = ""
    pacer: Pacer = field(default_factory=Pacer)


class StreamInput:
    """Reads one stream in a thread of its own. Use once: :meth:`open`, :meth:`take` until None, :meth:`close`.

    Args:
        address: The stream.
        config: Decode's settings.
        notice: Called with a line for the user at every event, from either thread.
    """

    def __init__(
        self, address: StreamAddress, config: DecodeConfig, notice: Callable[[str], object] = lambda line: None
    ) -> None:
        self.address = address
        self.config = config
        self.counts = Counts()
        self.outages: list[Outage] = []
        self.num_outages = 0
        self.bad_packets = 0
        self.problem: str | None = None
        self.in_flight = InFlightLimit(config.live.max_latency_seconds)
        self._notice = notice
        self._reader = BackgroundReader(self._read, "stream-input")
        self._changed = self._reader.changed
        self._slot: _Arrived | None = None
        self._first: _Arrived | None = None
        self._begun = self._ended = self._stopped = False
        self._failure: MediaError | None = None
        self._info: VideoInfo | None = None
        self._clock: StreamClock | None = None
        self._longest_step = _MISSING_SECONDS
        self._position = _Position()
        self._last_sign = time.monotonic()

    def open(self) -> VideoInfo:
        """Connect and wait for the first frame.

        Raises:
            MediaError: There is no video, or no connection after all attempts.
        """
        self._last_sign = time.monotonic()
        self._reader.start()
        with self._changed:
            while self._info is None and not self._ended:
                self._changed.wait(_CHECK_SECONDS)
                self._speak_after_silence()
            if self._info is not None:
                return self._info
        raise self._failure or MediaError(f"{self.address.shown}: {self.problem or 'has no frames'}")

    def take(self, stopped: Callable[[], bool]) -> Taken | None:
        """The next frame for the stages, once there is room for it; None at the end.

        Args:
            stopped: Whether to end.
        """
        with self._changed:
            self._begun = True
            while not stopped():
                if self._slot is not None and (not self.config.live.enabled or self.in_flight.has_room()):
                    arrived, self._slot = self._slot, None
                    self._changed.notify_all()
                    if self._is_fresh(arrived):
                        return self._hand_over(arrived)
                    self.counts.too_old += 1
                elif self._slot is None and self._ended:
                    return None
                else:
                    self._changed.wait(_CHECK_SECONDS)
                    self._speak_after_silence()
        self.close()
        return None

    def finished(self, index: int) -> None:
        """The stages are done with a frame."""
        with self._changed:
            self.in_flight.end(index, time.monotonic())
            self._changed.notify_all()

    def give_back(self, taken: Taken) -> None:
        """A frame that was taken is not wanted after all, as it lies after the end."""
        with self._changed:
            self.counts.processed -= 1
            self.counts.at_end += 1
            self.in_flight.forget(taken.index)

    def close(self) -> None:
        """Stop reading; a frame that waits is dropped. A thread that is inside a read ends after it."""
        with self._changed:
            self._stopped = self._ended = True
            if self._slot is not None:
                self._slot = None
                self.counts.at_end += 1
            self._changed.notify_all()

    def _is_fresh(self, arrived: _Arrived) -> bool:
        if not self.config.live.enabled or self._first is None:
            return True
        return time.monotonic() - arrived.arrival <= self.config.live.max_latency_seconds

    def _hand_over(self, arrived: _Arrived) -> Taken:
        if self._first is None:
            self._first = _Arrived(None, arrived.number, arrived.seconds, arrived.arrival)
        index = arrived.number - self._first.number
        self.counts.processed += 1
        self.in_flight.begin(index, arrived.arrival)
        return Taken(arrived.raw, index, arrived.seconds - self._first.seconds)

    def _speak_after_silence(self) -> None:
        silent = time.monotonic() - self._last_sign
        if silent > _SILENCE_SECONDS and self._slot is None and not self._ended:
            self._say(f"no frame for {silent:.0f} s; waiting")

    def _say(self, line: str) -> None:
        self._last_sign = time.monotonic()
        self._notice(f"{self.address.shown}: {line}")

    # From here on: the thread.

    def _read(self) -> None:
        try:
            while not self._stopped and self._read_connection():
                pass
        except MediaError as error:
            self._failure, self.problem = error, str(error)
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _read_connection(self) -> bool:
        """Read until the connection ends; whether to open another one."""
        try:
            connection = Connection(self.address, self.config.live, self._is_stopped, self.config.stream)
        except BrokenStreamError as error:
            if self._info is None:
                raise MediaError(f"{self.address.shown}: cannot be opened ({error})") from error
            return self._try_again(str(error))
        try:
            for frame in connection.frames():
                if not self._receive(connection, frame):
                    return False
            reason = "the stream ended"
        except BrokenStreamError as error:
            reason = str(error)
        else:
            if self._stopped or connection.has_end or self.config.live.reconnect == 0:
                return False
        finally:
            self.bad_packets += connection.bad_packets
            connection.close()
        return not self._stopped and self._try_again(reason)

    def _is_stopped(self) -> bool:
        return self._stopped

    def _try_again(self, reason: str) -> bool:
        """Wait before the next attempt; False after the last one."""
        at = self._position
        if at.broken_since is None:
            last = time.monotonic() if self._clock is None else self._clock.last_arrival
            at.broken_since, at.reason, at.attempts = last, reason, 0
        if not self.address.reopens or at.attempts >= self.config.live.reconnect:
            attempts = "1 attempt" if at.attempts == 1 else f"{at.attempts} attempts"
            tries = f", and could not be opened again in {attempts}" if at.attempts else ""
            self.problem = f"{reason}{tries}"
            self._log_outage(None)
            self._say(self.problem)
            return False
        pause = min(_FIRST_PAUSE_SECONDS * 2**at.attempts, _LONGEST_PAUSE_SECONDS)
        at.attempts += 1
        self._say(f"{reason}; opening it again in {pause:g} s ({at.attempts} of {self.config.live.reconnect})")
        deadline = time.monotonic() + pause
        while not self._stopped and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _CHECK_SECONDS))
        if self._clock is not None:
            self._clock.restart()
        return not self._stopped

    def _receive(self, connection: Connection, frame: StreamFrame) -> bool:
        """Take in one decoded frame; False where reading is to end."""
        at = self._position
        if self._is_repeated(connection, frame):
            self.counts.repeated += 1
            return not self._stopped
        now = time.monotonic()
        if self._clock is None:
            info = connection.info(frame)
            self._longest_step = max(_MISSING_SECONDS, 5 / float(info.frame_rate))
            self._clock = StreamClock(believes_gaps=self.address.bursts)
            with self._changed:
                self._info = info
                self._changed.notify_all()
        was_broken = at.broken_since is not None
        if at.broken_since is not None:
            self._log_outage(now - at.broken_since)
            self._say(f"frames again after {now - at.broken_since:.1f} s")
            at.broken_since = None
        if frame.seconds is not None:
            at.last_stream_seconds = max(frame.seconds, at.last_stream_seconds or frame.seconds)
        before = self._clock.last_seconds
        seconds = self._clock.seconds(frame.seconds, now)
        if not was_broken and seconds - before > self._longest_step:
            self.counts.time_jumps += 1
            self.counts.jumped_seconds = round(self.counts.jumped_seconds + seconds - before, 3)
        if self.address.bursts and self.config.live.enabled and not self._wait_until_due(seconds):
            return False
        at.number += 1
        self._last_sign = time.monotonic()
        if (at.number - 1) % self.config.every:
            return not self._stopped
        return self._put(_Arrived(frame.raw, at.number - 1, seconds, time.monotonic()))

    def _is_repeated(self, connection: Connection, frame: StreamFrame) -> bool:
        """Whether a playlist's server shows a frame again after a new connection."""
        at = self._position
        if at.broken_since is None or self.address.kind != "playlist":
            return False
        known = at.last_stream_seconds
        if known is None or frame.seconds is None or frame.seconds > known:
            return False
        return connection.has_end or frame.seconds > known - _REPEATED_SECONDS

    def _wait_until_due(self, seconds: float) -> bool:
        deadline = time.monotonic() + self._position.pacer.wait_seconds(seconds, time.monotonic())
        while not self._stopped and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _CHECK_SECONDS))
        return not self._stopped

    def _put(self, arrived: _Arrived) -> bool:
        """Put a frame into the slot; False once the input is stopped."""
        with self._changed:
            if not self.config.live.enabled:
                while self._slot is not None and not self._stopped:
                    self._changed.wait(_CHECK_SECONDS)
            if self._stopped:
                return False
            self.counts.received += 1
            if self._slot is not None:
                self.counts.newer += self._begun
                self.counts.before_start += not self._begun
            self._slot = arrived
            self._changed.notify_all()
        return True

    def _log_outage(self, seconds: float | None) -> None:
        at = self._position
        self.num_outages += 1
        if self._info is None or len(self.outages) >= MAX_OUTAGES:
            return
        first = self._first or _Arrived(None, 0, 0.0, 0.0)
        last = at.number - 1 - first.number
        start = (0.0 if self._clock is None else self._clock.last_seconds) - first.seconds
        length = None if seconds is None else round(seconds, 3)
        self.outages.append(Outage(max(0, last), round(start, 3), length, at.attempts, at.reason))

    def report(self) -> dict[str, Any]:
        """Facts for ``run.json``; bounded."""
        with self._changed:
            return {
                **asdict(self.counts),
                "dropped": self.counts.dropped,
                "latency_seconds": self.in_flight.report() if self.config.live.enabled else None,
                "num_outages": self.num_outages,
                "outages": [asdict(outage) for outage in self.outages],
                "bad_packets": self.bad_packets,
            }
