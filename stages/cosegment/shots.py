"""Where one shot ends and the next begins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import FloatArray
from pipeline.core.records import Packet
from pipeline.core.state import State
from stages.cosegment.motion import continuity, small_gray
from stages.cosegment.observation import Observation, observe
from stages.cosegment.part_space import PartSpace

_USUAL_MEMORY = 0.8


class ShotDetector:
    """Observes frame after frame and finds the cuts between them.

    A cut is a frame whose similarity to the previous frame (:func:`stages.cosegment.motion.continuity`) is below
    ``cut_similarity``, and by ``cut_drop`` below what is usual in the shot.
    """

    def __init__(self, cut_similarity: float, cut_drop: float, space: PartSpace | None = None) -> None:
        """Take the two limits, both in units of the mean cosine, and what parts are clustered in."""
        self._space = space
        self._cut_similarity = cut_similarity
        self._cut_drop = cut_drop
        self.reset()

    def reset(self) -> None:
        """Forget the video."""
        self._gray: npt.NDArray[np.uint8] | None = None
        self._rows: FloatArray | None = None
        self._usual = 1.0

    def state(self) -> State:
        """All that later frames depend on."""
        return {"gray": self._gray, "rows": self._rows, "usual": self._usual}

    def restore(self, state: State) -> None:
        """Continue from a :meth:`state`."""
        self._gray, self._rows, self._usual = state["gray"], state["rows"], state["usual"]

    def observe(self, packet: Packet) -> Observation:
        """What the next frame shows, cut or not."""
        gray = small_gray(packet.frame.image)
        seen = observe(packet, gray, self._gray, self._space)
        self._gray = gray
        return seen

    def observe_and_compare(self, packet: Packet) -> tuple[Observation, bool]:
        """What the next frame shows, and whether there is a cut before it; after a cut there is no motion."""
        seen = self.observe(packet)
        previous, self._rows = self._rows, seen.rows
        if previous is None or previous.shape != seen.rows.shape:
            self._usual = 1.0
            return seen, previous is not None
        similarity = continuity(seen.rows, previous)
        if similarity < min(self._cut_similarity, self._usual - self._cut_drop):
            return replace(seen, motion_px=None, flow=None), True
        self._usual = _USUAL_MEMORY * self._usual + (1 - _USUAL_MEMORY) * similarity
        return seen, False
