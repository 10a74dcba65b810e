"""Propagate: object masks carried from frame to frame by feature similarity (Caron et al. 2021)."""

from stages.propagate.config import PropagateConfig
from stages.propagate.stage import Propagator

__all__ = ["PropagateConfig", "Propagator"]
