"""Composites for trying a detector: DAVIS objects with their exact masks, pasted on other DAVIS frames.

Three sets: ``train``; ``frames``, later frames of the same objects on backgrounds that training never saw; and
``objects``, other objects of the same classes on those backgrounds. A background is a frame whose own object is
painted over. Boxes and masks are of what is visible after pasting, so they are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from pipeline.core.errors import MediaError
from pipeline.core.files import path_inside, whole_file, write_json_whole
from pipeline.formats.davis import DavisSequence, open_davis
from pipeline.formats.image_folder import load_image
from pipeline.formats.rle import encode_mask

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_LEAST_VISIBLE: Final = 0.35
_INPAINT_SCALE: Final = 4
_JPEG_QUALITY: Final = 95


@dataclass(frozen=True, slots=True)
class Recipe:
    """Which sequences are used for what.

    Attributes:
        objects: Sequences of each class whose objects are trained on.
        new_objects: Sequences of the same classes for the set ``objects``.
        backgrounds: Sequences whose frames are backgrounds of ``train``.
        new_backgrounds: The same for the held-out sets.
        train_share: Share of a sequence's frames, from its start, that objects of ``train`` are cut from; objects
            of ``frames`` come from the frames after 1.1 times that share.
        heights: Smallest and largest height of a pasted object by that of the frame.
        most_objects: At most so many per image.
    """

    objects: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "bird": ("blackswan",),
            "dog": ("dog",),
            "car": ("car-shadow",),
            "person": ("breakdance",),
            "cow": ("cows",),
        }
    )
    new_objects: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"dog": ("libby",), "car": ("drift-chicane",), "person": ("dance-twirl",)}
    )
    backgrounds: tuple[str, ...] = ("blackswan", "dog", "car-shadow", "cows", "bmx-trees")
    new_backgrounds: tuple[str, ...] = ("libby", "motocross-jump", "kite-surf", "drift-chicane")
    train_share: float = 0.7
    heights: tuple[float, float] = (0.25, 0.65)
    most_objects: int = 3


@dataclass(frozen=True, slots=True)
class Cutout:
    """An object cut out of a frame: uint8 ``(h, w, 3)``, bool ``(h, w)``, and its class's number from 1."""

    image: Image
    mask: Mask
    category: int


def make_composites(
    root: Path,
    output: Path,
    counts: Mapping[str, int],
    *,
    recipe: Recipe | None = None,
    split: str = "dev",
    seed: int = 0,
    on_image: Callable[[], Any] = lambda: None,
) -> None:
    """Write the sets: ``OUT/NAME/00000.jpg`` and ``OUT/NAME.json`` in COCO's layout.

    Args:
        root: DAVIS folder.
        output: Where to write.
        counts: Images of ``train``, ``frames`` and ``objects``.
        recipe: Which sequences; the defaults are in ``davis/ImageSets/2016/dev.txt``.
        split: List of sequences of DAVIS 2016 that has them.
        seed: Of all random choices.
        on_image: Called after every image.

    Raises:
        MediaError: A sequence is missing, or holds no object in the frames that are wanted.
    """
    recipe = recipe or Recipe()
    names = {n for group in (recipe.objects, recipe.new_objects) for own in group.values() for n in own}
    names |= {*recipe.backgrounds, *recipe.new_backgrounds}
    sequences = {s.name: s for s in open_davis(root, "2016", split=split, sequences=sorted(names))}
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(recipe.objects)]
    plans = {
        "train": (recipe.objects, recipe.backgrounds, (0.0, recipe.train_share)),
        "frames": (recipe.objects, recipe.new_backgrounds, (min(0.95, 1.1 * recipe.train_share), 1.0)),
        "objects": (recipe.new_objects, recipe.new_backgrounds, (0.0, 1.0)),
    }
    for place, (name, (objects, backgrounds, span)) in enumerate(plans.items()):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(counts[name]):
            rng = np.random.default_rng([seed, place, number])
            picture = background(_pick(rng, sequences, backgrounds), rng)
            wanted = int(rng.integers(1, recipe.most_objects + 1))
            cutouts = [_cutout(rng, sequences, objects, recipe, span) for _ in range(wanted)]
            image, found = paste(picture, cutouts, recipe.heights, rng)
            file_name = f"{number:05d}.jpg"
            _write_jpeg(path_inside(output, name, file_name), image)
            height, width = image.shape[:2]
            images.append({"id": number + 1, "file_name": file_name, "height": height, "width": width})
            annotations += [_annotation(len(annotations) + n + 1, number + 1, *own) for n, own in enumerate(found)]
            on_image()
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json_whole(output / f"{name}.json", content)


def _pick(
    rng: np.random.Generator, sequences: Mapping[str, DavisSequence], names: tuple[str, ...]
) -> DavisSequence:
    return sequences[names[int(rng.integers(len(names)))]]


def _frame(sequence: DavisSequence, name: str) -> tuple[Image, Mask]:
    """The image of a frame and its object's mask."""
    return load_image(sequence.frames_dir / f"{name}.jpg"), sequence.annotation(name) > 0


def _cutout(
    rng: np.random.Generator,
    sequences: Mapping[str, DavisSequence],
    objects: Mapping[str, tuple[str, ...]],
    recipe: Recipe,
    span: tuple[float, float],
) -> Cutout:
    category = tuple(objects)[int(rng.integers(len(objects)))]
    sequence = _pick(rng, sequences, objects[category])
    names = sequence.frame_names
    first, last = int(span[0] * len(names)), max(int(span[0] * len(names)) + 1, int(span[1] * len(names)))
    for place in rng.permutation(np.arange(first, last)):
        image, mask = _frame(sequence, names[place])
        if mask.any():
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            return Cutout(image[window], mask[window], tuple(recipe.objects).index(category) + 1)
    raise MediaError(f"{sequence.frames_dir}: no frame from {first} to {last - 1} shows the object")


def background(sequence: DavisSequence, rng: np.random.Generator) -> Image:
    """A random frame of a sequence with its object painted over from its surroundings."""
    names = sequence.frame_names
    image, mask = _frame(sequence, names[int(rng.integers(len(names)))])
    wide = cv2.dilate(mask.astype(np.uint8), np.ones((15, 15), np.uint8))
    small_hw = (max(1, image.shape[1] // _INPAINT_SCALE), max(1, image.shape[0] // _INPAINT_SCALE))
    small = cv2.resize(image, small_hw, interpolation=cv2.INTER_AREA)
    hole = cv2.resize(wide, small_hw, interpolation=cv2.INTER_NEAREST)
    filled = cv2.resize(cv2.inpaint(small, hole, 3, cv2.INPAINT_TELEA), (image.shape[1], image.shape[0]))
    soft = cv2.GaussianBlur(wide.astype(np.float32), (0, 0), 4)[..., None]
    mixed = image * (1 - soft) + filled * soft
    return np.asarray(mixed[:, ::-1] if rng.random() < 0.5 else mixed, np.uint8).copy()


def paste(
    picture: Image, cutouts: list[Cutout], heights: tuple[float, float], rng: np.random.Generator
) -> tuple[Image, list[tuple[Mask, int]]]:
    """Paste objects at random places and sizes, later ones in front.

    Args:
        picture: uint8 ``(H, W, 3)``; not changed.
        cutouts: The objects.
        heights: Smallest and largest height by that of the picture.
        rng: Random choices.

    Returns:
        The image, and mask and category of every object of which enough is visible.
    """
    image = picture.copy()
    placed: list[tuple[Mask, int, int]] = []
    for cutout in cutouts:
        mask, colors = _placed(cutout, (image.shape[0], image.shape[1]), heights, rng)
        hidden = [(own & ~mask, whole, category) for own, whole, category in placed]
        if any(own.sum() < _LEAST_VISIBLE * whole for own, whole, _ in hidden):
            continue  # it would hide another object nearly wholly
        alpha = cv2.GaussianBlur(mask.astype(np.float32), (3, 3), 0)[..., None]
        image = np.asarray(image * (1 - alpha) + colors * alpha, np.uint8)
        placed = [*hidden, (mask, int(mask.sum()), cutout.category)]
    return image, [(own, category) for own, _, category in placed]


def _placed(
    cutout: Cutout, image_hw: tuple[int, int], heights: tuple[float, float], rng: np.random.Generator
) -> tuple[Mask, npt.NDArray[np.float32]]:
    """The object's mask ``(H, W)`` and its colors ``(H, W, 3)`` at a random place, size and brightness."""
    height, width = image_hw
    share = np.exp(rng.uniform(*np.log(heights)))
    scale = min(share * height / cutout.mask.shape[0], 0.9 * width / cutout.mask.shape[1])
    size = (max(8, round(cutout.mask.shape[1] * scale)), max(8, round(cutout.mask.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    pixels = cv2.resize(cutout.image, size, interpolation=method)
    small = cv2.resize(cutout.mask.astype(np.float32), size, interpolation=method) >= 0.5
    if rng.random() < 0.5:
        pixels, small = pixels[:, ::-1], small[:, ::-1]
    top = int(rng.integers(0, height - size[1] + 1))
    left = int(rng.integers(0, width - size[0] + 1))
    window = slice(top, top + size[1]), slice(left, left + size[0])
    mask = np.zeros(image_hw, np.bool_)
    mask[window] = small
    colors = np.zeros((*image_hw, 3), np.float32)
    colors[window] = (pixels * rng.uniform(0.8, 1.2)).clip(0, 255)
    # The soft border reads one pixel outside of the mask; there the object's own color is repeated.
    colors[window][~small] = cv2.blur(np.where(small[..., None], colors[window], 0), (3, 3))[~small] / np.maximum(
        cv2.blur(small.astype(np.float32), (3, 3))[~small][:, None], 1e-3
    )
    return mask, colors


def _annotation(number: int, image_id: int, mask: Mask, category: int) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": encode_mask(mask),
    }


def _write_jpeg(path: Path, image: Image) -> None:
    with whole_file(path) as partial:
        Pillow.fromarray(image).save(partial, format="JPEG", quality=_JPEG_QUALITY)
