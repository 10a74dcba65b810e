"""Opening a labeled set by the name of its layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from pipeline.core.errors import ConfigError
from pipeline.local.box_layouts import read_coco, read_fair1m
from pipeline.local.labeled_set import LabeledSet
from pipeline.local.layouts import read_ade20k, read_cityscapes, read_davis_set, read_folder

Layout = Literal["cityscapes", "ade20k", "davis", "folder", "fair1m", "coco"]

_READERS: Final[dict[str, Callable[[Path], LabeledSet]]] = {
    "cityscapes": read_cityscapes,
    "ade20k": read_ade20k,
    "folder": read_folder,
    "fair1m": read_fair1m,
}


def open_labeled_set(
    layout: Layout,
    source: Path,
    *,
    images: Path | None = None,
    davis_list: str = "val",
    davis_classes: Literal["object", "sequence"] = "object",
) -> LabeledSet:
    """Read a data set; every file's place is checked now, its content when it is used.

    Args:
        layout: How the data lies.
        source: Its root; for COCO perhaps a JSON file.
        images: Folder of the images, for COCO only.
        davis_list: List of sequences, for DAVIS only.
        davis_classes: One class for all objects or one per sequence, for DAVIS only.

    Raises:
        InputError: The data is not there or not in this layout.
    """
    if images is not None and layout != "coco":
        raise ConfigError("--images names the folder of COCO's images; other layouts have their own")
    if layout == "davis":
        return read_davis_set(source, davis_classes, davis_list)
    if layout == "coco":
        return read_coco(source, images)
    return _READERS[layout](source)
