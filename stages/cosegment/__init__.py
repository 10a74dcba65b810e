"""Cosegment: foreground and parts that keep their numbers through a video (Amir et al. 2021)."""

from stages.cosegment.stage import CosegmentConfig, Cosegmenter

__all__ = ["CosegmentConfig", "Cosegmenter"]
