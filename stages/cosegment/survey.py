"""The first of two passes over a video: an even sample of its frames, to fit one codebook on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pipeline.core.grid import PatchGrid
from pipeline.core.records import Packet
from pipeline.core.state import State, grid_from_state, grid_state
from stages.cosegment.motion import small_gray
from stages.cosegment.observation import Observation, features_of, observe
from stages.cosegment.part_space import PartSpace
from stages.cosegment.reservoir import EvenReservoir


class Survey:
    """Keeps the observations of at most ``capacity`` frames, evenly spread over the video.

    Attributes:
        first_index: Index of the first frame; None before it.
        grid: Where its cells lie; None before it.
    """

    def __init__(self, capacity: int, space: PartSpace | None = None) -> None:
        """Hold at most ``capacity`` observations; ``space`` is what parts are clustered in."""
        self._space = space
        self.first_index: int | None = None
        self.grid: PatchGrid | None = None
        self._reservoir: EvenReservoir[Observation] = EvenReservoir(capacity)
        self._gray: npt.NDArray[np.uint8] | None = None

    @property
    def window(self) -> list[Observation]:
        """The observations kept so far, in order."""
        return self._reservoir.items

    def add(self, packet: Packet) -> None:
        """Look at the next frame."""
        if self.first_index is None:
            self.first_index, self.grid = packet.index, features_of(packet).grid
        gray = small_gray(packet.frame.image)
        if self._reservoir.wants_next():
            seen = observe(packet, gray, self._gray, self._space)
            # The fit does not read these two, and they would double the memory.
            self._reservoir.add(replace(seen, gray=None, flow=None))
        else:
            self._reservoir.skip()
        self._gray = gray

    def state(self) -> State:
        """All that later frames depend on."""
        return {
            "first_index": self.first_index,
            "grid": None if self.grid is None else grid_state(self.grid),
            "window": [seen.state() for seen in self.window],
            "stride": self._reservoir.stride,
            "num_seen": self._reservoir.num_seen,
            "gray": self._gray,
        }

    def restore(self, state: State) -> None:
        """Continue from a :meth:`state`."""
        self.first_index = state["first_index"]
        self.grid = None if state["grid"] is None else grid_from_state(state["grid"])
        window = [Observation(**seen) for seen in state["window"]]
        self._reservoir.restore(window, state["stride"], state["num_seen"])
        self._gray = state["gray"]
