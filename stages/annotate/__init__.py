"""Annotate: draws what the other stages found onto the frame."""

from stages.annotate.stage import AnnotateConfig, Annotator

__all__ = ["AnnotateConfig", "Annotator"]
