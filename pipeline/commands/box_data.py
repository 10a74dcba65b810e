"""What ``track-eval`` and ``retrieval`` share: a labeled video through the flow, and its masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pipeline.core.errors import MaskError
from pipeline.core.records import Detections, Packet
from pipeline.evaluation.box_sequences import BoxSequence
from pipeline.flow import FlowConfig, stream
from pipeline.formats.masks import load_masks
from stages.extract import Extractor


def packets_of(
    sequence: BoxSequence,
    flow: FlowConfig,
    extractor: Extractor,
    *,
    stages: Sequence[str] = (),
    every: int = 1,
    detections: Mapping[int, Detections] | None = None,
    masks: Mapping[int, npt.NDArray[np.uint8]] | None = None,
    keep_features: bool = False,
) -> Iterator[Packet]:
    """A labeled video through the flow, with a progress bar on stderr."""
    video = sequence.video
    decode = {"every": every, "image_frame_rate": float(video.frame_rate)}
    config = flow.only("extract", *stages, decode=decode)
    packets = stream(
        video.path, config, masks=masks, detections=detections, keep_features=keep_features, extractor=extractor
    )
    total = -(-sequence.num_frames // every)
    yield from tqdm(packets, total=total, desc=sequence.name, unit="frame")


def masks_of(
    folder: Path | None, sequence: BoxSequence, frames: str
) -> Mapping[int, npt.NDArray[np.uint8]] | None:
    """Annotation masks of a video from ``FOLDER/NAME/masks`` or ``FOLDER/NAME``.

    Args:
        folder: Where the masks of all videos are; None for no masks.
        sequence: The video.
        frames: ``all``, or ``first`` to use the first mask only and propagate it.

    Raises:
        MaskError: There are none, or they do not fit.
    """
    if folder is None:
        return None
    for path in (folder / sequence.name / "masks", folder / sequence.name):
        if path.is_dir() and any(path.glob("*.png")):
            masks = load_masks(path, sequence.video)
            return masks if frames == "all" else {min(masks): masks[min(masks)]}
    raise MaskError(f"{folder}: no masks for '{sequence.name}' (looked in {sequence.name}/masks, {sequence.name})")
