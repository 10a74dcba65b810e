"""Masks by frame of a video, from prompts on one or several of its frames."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.records import Frame
from pipeline.prompts.features import describers
from pipeline.prompts.prompt import Prompt
from pipeline.prompts.segmentation import FrameSegmenter, IndexMask
from stages.decode import DecodeConfig, Decoder, probe
from stages.extract import Extractor


def masks_from_prompts(
    source: Path, config: DecodeConfig, prompts: Sequence[Prompt], extractor: Extractor
) -> dict[int, IndexMask]:
    """The masks that prompts stand for, as if they had been given as masks.

    Args:
        source: A video file or a folder of images.
        config: Which frames are processed; a prompt belongs to the first of them at or after its time.
        prompts: On any of these frames.
        extractor: The run's; its backbone is used, and the extractor is reset.

    Returns:
        Index masks, uint8 ``(H, W)``, by frame index.

    Raises:
        InputError: No frame at a prompt's time, or prompts from which no mask can be made.
    """
    by_frame = _by_frame(source, config, prompts)
    describe_whole, describe_window = describers(extractor)
    masks = {
        frame.index: FrameSegmenter(describe_whole(frame.image), describe_window).index_mask(own)
        for frame, own in by_frame.values()
    }
    extractor.reset()
    return masks


def masks_on_frame(frame: Frame, prompts: Sequence[Prompt], extractor: Extractor) -> dict[int, IndexMask]:
    """The same for prompts on the first frame of a stream.

    Raises:
        InputError: A prompt for a later time, or prompts from which no mask can be made.
    """
    if any(prompt.at_seconds for prompt in prompts):
        raise InputError("points and boxes on a stream belong to its first frame; leave --at out")
    describe_whole, describe_window = describers(extractor)
    segmenter = FrameSegmenter(describe_whole(frame.image), describe_window)
    masks = {frame.index: segmenter.index_mask(prompts)}
    extractor.reset()
    return masks


def _by_frame(
    source: Path, config: DecodeConfig, prompts: Sequence[Prompt]
) -> dict[int, tuple[Frame, list[Prompt]]]:
    """The prompts of each frame, and the frame, in the order of the frames."""
    info = probe(source, config)
    found: dict[int, tuple[Frame, list[Prompt]]] = {}
    waiting = sorted({max(prompt.at_seconds or 0.0, config.start_seconds) for prompt in prompts})
    if not waiting:
        raise InputError("no prompts: give at least one point or box")
    with closing(Decoder(config, info)()) as frames:  # type: ignore[type-var]
        for frame in frames:
            # Times come from people and containers, which round.
            while waiting and frame.pts_seconds >= waiting[0] - 5e-4:
                moment = waiting.pop(0)
                own = [p for p in prompts if max(p.at_seconds or 0.0, config.start_seconds) == moment]
                found.setdefault(frame.index, (frame, []))[1].extend(own)
            if not waiting:
                return found
    raise InputError(f"{source}: there is no frame at or after {waiting[0]:g} s; give an earlier --at")
