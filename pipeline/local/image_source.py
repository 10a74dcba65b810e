"""Images of a set, wherever they come from: files, folders, and frames of videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.core.errors import MediaError
from pipeline.core.files import IMAGE_SUFFIXES, list_images
from pipeline.images.image_sets import load_named
from pipeline.local.labeled_set import Image
from stages.decode import Decoder, probe
from stages.decode.config import DecodeConfig

Named = tuple[str, Image]


def load_images(sources: Sequence[Path], *, every: int = 1, limit: int | None = None) -> list[Named]:
    """Named images of files and folders, and the frames of videos.

    Args:
        sources: Images, folders of images and videos.
        every: Only every n-th image of a folder or frame of a video.
        limit: At most so many, spread evenly over what there is.

    Raises:
        MediaError: A source is missing, cannot be read, or has no images.
    """
    named: list[Named] = []
    for source in sources:
        if source.is_dir():
            named.extend(load_named(list_images(source)[::every]))
        elif source.suffix.lower() in IMAGE_SUFFIXES and source.is_file():
            named.extend(load_named([source]))
        else:
            config = DecodeConfig(every=every)
            frames = Decoder(config, probe(source, config))()
            named.extend((f"{source.stem} {frame.index}", frame.image) for frame in frames)
    if not named:
        raise MediaError("there are no images")
    if limit is not None and len(named) > limit:
        named = [named[place * len(named) // limit] for place in range(limit)]
    return named
