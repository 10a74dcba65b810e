"""Annotate: draws what the other stages found onto the frame."""

from stages.annotate.config import AnnotateConfig
from stages.annotate.stage import Annotator

__all__ = ["AnnotateConfig", "Annotator"]
