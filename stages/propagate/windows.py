"""Which cells of another frame a cell is compared with: a window around its position, and a prior inside it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Shape = Literal["square", "disc"]


@dataclass(frozen=True, slots=True)
class Window:
    """Which cells of a context frame a target cell is compared with.

    Attributes:
        radius_cells: Reach in cells; None or 0 compares with the whole frame.
        shape: "square": row and column offset at most the radius (DINO). "disc": distance below the radius,
            strictly (videowalk). "disc" with ``inclusive`` allows the radius itself.
        inclusive: Whether a disc holds the cells at exactly the radius; a square always does.
        prior_sigma_cells: Standard deviation in cells of a Gaussian prior on the offset. Its logarithm times the
            temperature is added to the similarity, before the selection: weights are multiplied by the Gaussian.
            None: every offset inside the window is equally likely.
        prior_floor: Lower bound of the prior's factor on a weight, in (0, 1], for fast objects.
        prior_frames: Frames between context and target, over which the measured motion is extrapolated.
    """

    radius_cells: float | None = 12
    shape: Shape = "square"
    inclusive: bool = False
    prior_sigma_cells: float | None = None
    prior_floor: float | None = None
    prior_frames: int = 0

    @property
    def reach(self) -> int | None:
        """The largest row or column offset inside the window, None for the whole frame."""
        if not self.radius_cells:
            return None
        if self.shape == "disc" and not self.inclusive:
            return math.ceil(self.radius_cells) - 1
        return math.floor(self.radius_cells)

    def scaled(self, factor: float) -> Window:
        """The same window in pixels on a grid with ``factor`` times the cells along each side."""
        radius, sigma = self.radius_cells, self.prior_sigma_cells
        return replace(
            self,
            radius_cells=radius * factor if radius else radius,
            prior_sigma_cells=sigma * factor if sigma else sigma,
        )

    def mask(self, rows: Tensor, columns: Tensor) -> Tensor:
        """0 at the offsets inside the window, -inf outside; float32, ``rows`` and ``columns`` broadcast."""
        squared = rows**2 + columns**2
        if not self.radius_cells:
            return torch.zeros_like(squared)
        if self.shape == "square":
            inside = torch.maximum(rows.abs(), columns.abs()) <= self.radius_cells
        elif self.inclusive:
            inside = squared <= self.radius_cells**2
        else:
            inside = squared < self.radius_cells**2
        return torch.zeros_like(squared).masked_fill(~inside, -math.inf)

    def prior(self, temperature: float) -> tuple[float, float]:
        """The prior's part of the similarity: the first times the squared distance, which the second caps."""
        if not self.prior_sigma_cells:
            return 0.0, math.inf
        variance = self.prior_sigma_cells**2
        cap = -2 * variance * math.log(self.prior_floor) if self.prior_floor else math.inf
        return -temperature / (2 * variance), cap
