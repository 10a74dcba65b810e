"""Sets of images with a class per pixel, whatever layout they come in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import ConfigError, MaskError, MediaError
from pipeline.core.files import natural_key
from pipeline.formats.image_folder import load_image

Image = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int16]
"""A class index per pixel, ``(H, W)``; :data:`IGNORED` where there is none."""

IGNORED: Final = -1


@dataclass(frozen=True, slots=True)
class LabelClass:
    """A class.

    Attributes:
        name: For tables.
        supercategory: The group it belongs to; its own name where the data has no groups.
        is_background: Whether it stands for everything that is not an object.
    """

    name: str
    supercategory: str
    is_background: bool = False


@dataclass(frozen=True, slots=True)
class LabeledImage:
    """One image, read when it is asked for.

    Attributes:
        name: Unique in its set.
        path: The image file.
        split: Such as ``train``; empty where the data has no splits.
        group: What it shares with other images of a set: its city, sequence or folder.
        read_labels: Gives the labels of an image of this height and width.
    """

    name: str
    path: Path
    split: str
    group: str
    read_labels: Callable[[tuple[int, int]], Labels] = field(repr=False)

    def load(self) -> tuple[Image, Labels]:
        """The image, uint8 ``(H, W, 3)``, and its labels, int16 ``(H, W)``.

        Raises:
            InputError: A file that is missing or cannot be read, or labels of another size.
        """
        image = load_image(self.path)
        height, width = image.shape[:2]
        labels = self.read_labels((height, width))
        if labels.shape != (height, width):
            raise MaskError(
                f"{self.path}: the image is {width} x {height} pixels, its labels {labels.shape[1]} x "
                f"{labels.shape[0]}"
            )
        return image, labels


@dataclass(frozen=True, slots=True)
class LabeledSet:
    """Images and the classes of their pixels.

    Attributes:
        classes: By class index.
        images: In natural order of their names.
    """

    classes: tuple[LabelClass, ...]
    images: tuple[LabeledImage, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups, in natural order."""
        return tuple(sorted({image.group for image in self.images}, key=natural_key))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits, in order of first appearance."""
        return tuple(dict.fromkeys(image.split for image in self.images))

    def of_split(self, split: str) -> LabeledSet:
        """The images of a split.

        Raises:
            MediaError: There are none.
        """
        chosen = tuple(image for image in self.images if image.split == split)
        if not chosen:
            names = ", ".join(name or "(none)" for name in self.splits)
            raise MediaError(f"the data has no images of split '{split}'; it has {names}")
        return replace(self, images=chosen)

    def of_groups(self, groups: Sequence[str]) -> LabeledSet:
        """The images of some groups.

        Raises:
            ConfigError: A group does not exist.
        """
        wrong = [name for name in groups if name not in self.groups]
        if wrong:
            raise ConfigError(f"no group '{wrong[0]}' in the data; it has {', '.join(self.groups[:20])}")
        return replace(self, images=tuple(image for image in self.images if image.group in groups))

    def spread(self, per_group: int | None = None, every: int = 1, limit: int | None = None) -> LabeledSet:
        """Fewer images: the first of each group, every n-th of a group, or so many spread over all."""
        kept = [
            image
            for group in self.groups
            for image in [i for i in self.images if i.group == group][::every][:per_group]
        ]
        if limit is not None and len(kept) > limit:
            kept = [kept[place * len(kept) // limit] for place in range(limit)]
        return replace(self, images=tuple(kept))


def check_values(path: Path, labels: Labels, num_classes: int) -> Labels:
    """``labels`` unchanged.

    Raises:
        MaskError: A value is not a class; the message names the file and the value.
    """
    wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= num_classes))]
    if wrong.size:
        raise MaskError(f"{path}: the value {int(wrong[0])} is not a class; valid: 0 to {num_classes - 1}")
    return labels


def through_table(path: Path, values: npt.NDArray[np.uint8], table: npt.NDArray[np.int16]) -> Labels:
    """Pixel values of a mask as class indices.

    Args:
        path: The mask, for errors.
        values: uint8 ``(H, W)``.
        table: int16 ``(256,)``: a class index, :data:`IGNORED`, or -2 for values that must not occur.

    Raises:
        MaskError: A value that must not occur.
    """
    labels = table[values]
    if (labels < IGNORED).any():
        raise MaskError(f"{path}: the value {int(values[labels < IGNORED][0])} is not a class of this data set")
    return labels
