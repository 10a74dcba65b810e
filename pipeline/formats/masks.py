"""Object masks given by the user: one PNG for the first frame, or a folder of PNGs named by frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import MaskError
from pipeline.core.records import VideoInfo
from pipeline.formats.palette import indexed_png_hw, read_indexed_png

_MAX_DIGITS = 12
VOID = 255
"""Value of pixels that are neither object nor background."""


def single_object(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """``values`` of {0, 255}, as DAVIS 2016 writes one object, as {0, 1}.

    Any other set of values is returned unchanged, with 255 as void.

    >>> single_object(np.array([[0, 255]], np.uint8)).tolist()
    [[0, 1]]
    >>> single_object(np.array([[0, 2, 255]], np.uint8)).tolist()
    [[0, 2, 255]]
    """
    present = np.unique(values)
    if present[-1] == VOID and np.isin(present, (0, VOID)).all():
        return np.asarray(values == VOID, dtype=np.uint8)
    return values


def object_ids(mask: npt.NDArray[np.uint8]) -> tuple[int, ...]:
    """The object ids in an index mask, ascending, without background and void.

    >>> object_ids(np.array([[0, 3, 1, 255]], np.uint8))
    (1, 3)
    """
    return tuple(int(value) for value in np.unique(mask) if value not in (0, VOID))


class MaskFiles(Mapping[int, npt.NDArray[np.uint8]]):
    """Given masks by the 0-based index of their frame; a file is read when its mask is asked for.

    Invariant: every file was there, and had the frames' size, when this was made.
    """

    def __init__(self, files: Mapping[int, Path], info: VideoInfo) -> None:
        self._files = dict(sorted(files.items()))
        self._info = info
        for file in self._files.values():
            self._check_size(file, indexed_png_hw(file))

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        """The mask of a frame, uint8 ``(H, W)``; a mask of {0, 255} is one object.

        Raises:
            KeyError: There is none.
            MaskError: The file cannot be read any more, or has another size now.
        """
        file = self._files[index]
        mask = single_object(read_indexed_png(file))
        self._check_size(file, (mask.shape[0], mask.shape[1]))
        return mask

    def __iter__(self) -> Iterator[int]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def _check_size(self, file: Path, mask_hw: tuple[int, int]) -> None:
        if mask_hw != self._info.image_hw:
            raise MaskError(
                f"{file}: the mask is {mask_hw[1]} x {mask_hw[0]} pixels, the frames are "
                f"{self._info.width} x {self._info.height}"
            )


def load_masks(path: Path, info: VideoInfo, *, first_index: int = 0) -> MaskFiles:
    """The given masks by the 0-based index of their frame. Headers are checked now, pixels read when needed.

    Args:
        path: An indexed (or 8-bit gray) PNG for the first frame; or a folder of them named by frame: by image name
            for a folder of images, by 0-based frame number for a video.
        info: The input's facts: size, number and names of frames.
        first_index: Index of the first frame that is processed.

    Returns:
        A mapping to uint8 ``(H, W)`` object ids; 255 is void; a mask of {0, 255} is one object.

    Raises:
        MaskError: Nothing at ``path``, a mask of another size than the frames, colors instead of indices, a name
            that is not a frame of the input, or masks without any object.
    """
    if path.is_dir():
        files = _files_by_frame(path, info)
    elif path.exists():
        files = {first_index: path}
    else:
        raise MaskError(f"{path}: no such mask file or folder")
    masks = MaskFiles(files, info)
    if not any(object_ids(mask) for mask in masks.values()):
        raise MaskError(f"{path}: has no object; pixel values are object numbers (1 to 254)")
    return masks


def _files_by_frame(folder: Path, info: VideoInfo) -> dict[int, Path]:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".png" and not p.name.startswith("."))
    if not files:
        raise MaskError(f"{folder}: no PNG masks in this folder")
    by_name = {name: index for index, name in enumerate(info.frame_names)}
    found: dict[int, Path] = {}
    for file in files:
        index = by_name[file.stem] if file.stem in by_name else _number(file, info)
        if index in found:
            raise MaskError(f"{file}: a second mask for frame {index}, the other is {found[index].name}")
        found[index] = file
    return found


def _number(file: Path, info: VideoInfo) -> int:
    if not (file.stem.isascii() and file.stem.isdecimal() and len(file.stem) <= _MAX_DIGITS):
        wanted = f"like its picture, for example {info.frame_names[0]}.png" if info.frame_names else "00000.png"
        raise MaskError(f"{file}: the name is not a frame of {info.path.name}; name masks by frame, {wanted}")
    index = int(file.stem)
    if info.num_frames is not None and index >= info.num_frames:
        raise MaskError(
            f"{file}: mask for frame {index}, but {info.path.name} has {info.num_frames} frames "
            f"(0 to {info.num_frames - 1})"
        )
    return index
