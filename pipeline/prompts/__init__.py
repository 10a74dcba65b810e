"""Clicks and boxes become masks, from frozen features alone; docs/prompts.md has the method and its numbers."""

from pipeline.prompts.features import describers
from pipeline.prompts.prompt import Box, Point, Prompt, parse_box, parse_point
from pipeline.prompts.segmentation import FrameSegmenter, mask_from_prompts
from pipeline.prompts.video import masks_from_prompts, masks_on_frame

__all__ = [
    "Box",
    "FrameSegmenter",
    "Point",
    "Prompt",
    "describers",
    "mask_from_prompts",
    "masks_from_prompts",
    "masks_on_frame",
    "parse_box",
    "parse_point",
]
