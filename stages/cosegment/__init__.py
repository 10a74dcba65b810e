"""Cosegment: foreground and parts that keep their numbers through a video (Amir et al. 2021)."""

from stages.cosegment.config import CosegmentConfig
from stages.cosegment.stage import Cosegmenter

__all__ = ["CosegmentConfig", "Cosegmenter"]
