"""What of an input could not be decoded."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

MAX_GAPS = 100
"""Gaps that are kept one by one; later ones are only counted."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Consecutive frames that are missing.

    Attributes:
        first_index: Index of the first missing frame.
        last_index: Index of the last missing frame.
        start_seconds: Presentation time of the frame before the gap; 0 at the start of the input.
        end_seconds: Presentation time of the frame after the gap; None at the end of the input.
    """

    first_index: int
    last_index: int
    start_seconds: float
    end_seconds: float | None

    @property
    def frames(self) -> int:
        """How many frames are missing."""
        return self.last_index - self.first_index + 1


@dataclass(frozen=True, slots=True)
class Damage:
    """The damage of an input, for its status and for ``run.json``.

    Attributes:
        frames_missing: Frames that could not be decoded.
        frames_total: Frames of the input with the missing ones, as far as was read.
        gaps: The first gaps, at most :data:`MAX_GAPS`.
        num_gaps: The number of all gaps.
        ends_early: How the end of the input was found to be missing, or None.
        stopped: Reading stopped at the damage, as ``decode.on_damage`` says.
    """

    frames_missing: int
    frames_total: int
    gaps: tuple[Gap, ...]
    num_gaps: int
    ends_early: str | None = None
    stopped: bool = False

    def summary(self) -> str:
        """One line for the user.

        >>> Damage(44, 250, (Gap(31, 74, 1.2, 3.0),), 1).summary()
        '44 frames of 250 could not be decoded, after frame 30'
        """
        parts = [self.ends_early] if self.ends_early else []
        if self.frames_missing:
            noun = "frame" if self.frames_missing == 1 else "frames"
            lost = f"{self.frames_missing} {noun} of {self.frames_total} could not be decoded"
            where = f"after frame {self.gaps[0].first_index - 1}" if self.gaps[0].first_index else "at the start"
            parts.append(f"{lost}, {where}" if self.num_gaps == 1 else f"{lost}, in {self.num_gaps} gaps")
        if self.stopped:
            parts.append("stopped there (decode.on_damage: stop)")
        return "; ".join(parts)


@dataclass(slots=True)
class DamageLog:
    """Collects the damage while an input is read. Its size is bounded."""

    frames_missing: int = 0
    num_gaps: int = 0
    gaps: list[Gap] = field(default_factory=list)
    ends_early: str | None = None
    stopped: bool = False
    warnings: list[str] = field(default_factory=list)

    def add(self, gap: Gap) -> None:
        """Record a gap; one that follows directly on the last one continues it."""
        self.frames_missing += gap.frames
        if self.gaps and self.num_gaps == len(self.gaps) and self.gaps[-1].last_index + 1 == gap.first_index:
            last = self.gaps[-1]
            self.gaps[-1] = Gap(last.first_index, gap.last_index, last.start_seconds, gap.end_seconds)
            return
        self.num_gaps += 1
        if len(self.gaps) < MAX_GAPS:
            self.gaps.append(gap)

    def warn(self, message: str) -> None:
        """Add a warning, once, up to :data:`MAX_GAPS`."""
        if message not in self.warnings and len(self.warnings) < MAX_GAPS:
            self.warnings.append(message)

    def damage(self, frames_read: int) -> Damage | None:
        """The damage so far, None if the input is whole.

        Args:
            frames_read: Number of frames up to the last one that was decoded, missing ones included.
        """
        if not (self.frames_missing or self.ends_early):
            return None
        last_missing = self.gaps[-1].last_index + 1 if self.gaps else 0
        total = max(frames_read, last_missing)
        return Damage(self.frames_missing, total, tuple(self.gaps), self.num_gaps, self.ends_early, self.stopped)

    def state(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    def restore(self, state: dict[str, Any]) -> None:
        """Take over an earlier :meth:`state`."""
        for name, value in state.items():
            setattr(self, name, value)
        self.gaps = [Gap(**gap) for gap in state["gaps"]]
        self.warnings = list(state["warnings"])
