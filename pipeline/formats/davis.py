"""The DAVIS layout: the sequences of a root, their frames and annotations, and folders of results.

::

    ROOT/JPEGImages/480p/<sequence>/00000.jpg ...
    ROOT/Annotations/480p/<sequence>/00000.png ...
    ROOT/ImageSets/<year>/<split>.txt        one sequence per line

DAVIS 2016 has one object per sequence, written as {0, 255} in its own release and as all ids but 0 in the files of
2017. DAVIS 2017 has object ids in a palette PNG; 0 is background and 255 void.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import MaskError, MediaError
from pipeline.core.files import is_component
from pipeline.formats.image_folder import upright_size
from pipeline.formats.masks import VOID, object_ids, single_object
from pipeline.formats.palette import read_indexed_png

Year = Literal["2016", "2017"]
_FRAME_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
_FRAMES, _MASKS, _SETS = "JPEGImages/480p", "Annotations/480p", "ImageSets"


@dataclass(frozen=True, slots=True)
class DavisSequence:
    """One sequence of a DAVIS root.

    Attributes:
        name: The sequence's folder name.
        frames_dir: Folder of its pictures.
        masks_dir: Folder of its annotations.
        year: "2016" merges all objects into one, "2017" keeps them.
        frame_names: Names of the frames without suffix, in order.
    """

    name: str
    frames_dir: Path
    masks_dir: Path
    year: Year
    frame_names: tuple[str, ...] = field(repr=False)

    def annotation(self, frame_name: str) -> npt.NDArray[np.uint8]:
        """The annotation of one frame, uint8 ``(H, W)``: object ids (2016: 0 and 1), 255 for void.

        Raises:
            MaskError: The annotation is missing or cannot be read.
        """
        return year_mask(read_indexed_png(self.masks_dir / f"{frame_name}.png"), self.year)

    def first_mask(self) -> npt.NDArray[np.uint8]:
        """The annotation of the first frame, which has at least one object.

        Raises:
            MaskError: It is missing, cannot be read, or has no object.
        """
        name = self.frame_names[0]
        path = self.masks_dir / f"{name}.png"
        values = read_indexed_png(path)
        mask = year_mask(values, self.year)
        if not object_ids(mask):
            hint = "; it holds 0 and 255, as DAVIS 2016 does: use --year 2016" if (values == VOID).any() else ""
            raise MaskError(f"{path}: the first mask has no object{hint}")
        return mask


def year_mask(values: npt.NDArray[np.uint8], year: Year) -> npt.NDArray[np.uint8]:
    """The values of an annotation or a result as defined by that year's task.

    Args:
        values: uint8 ``(H, W)``, as in the file.
        year: "2016" gives 0 and 1; "2017" the ids and void (255) unchanged.

    >>> year_mask(np.array([[0, 2, 3, 255]], np.uint8), "2016").tolist()
    [[0, 1, 1, 0]]
    >>> year_mask(np.array([[0, 255]], np.uint8), "2016").tolist()
    [[0, 1]]
    """
    if year == "2017":
        return values
    values = single_object(values)
    return np.asarray((values != 0) & (values != VOID), dtype=np.uint8)


def open_davis(
    root: Path, year: Year, *, split: str = "val", sequences: Sequence[str] | None = None
) -> list[DavisSequence]:
    """The sequences of a DAVIS root, each checked for frames, annotations and a usable first mask.

    Args:
        root: Folder with ``JPEGImages``, ``Annotations`` and, unless ``sequences`` is given, ``ImageSets``.
        year: Which year's task.
        split: Name of the list under ``ImageSets/<year>``.
        sequences: Names to use instead of a split.

    Raises:
        MediaError: The root is not DAVIS, or a sequence is missing or has no frames.
        MaskError: A frame has no annotation, or the first mask has no object.
    """
    for part in (_FRAMES, _MASKS):
        if not (root / part).is_dir():
            raise MediaError(
                f"{root}: not a DAVIS root: no folder {part}; expected {_FRAMES}/<sequence>/00000.jpg, "
                f"{_MASKS}/<sequence>/00000.png and {_SETS}/{year}/{split}.txt under it"
            )
    names = list(sequences) if sequences else _read_split(root, year, split)
    if not names:
        raise MediaError(f"{root / _SETS / year / f'{split}.txt'}: the list has no sequences")
    for name in names:
        if not is_component(name):
            raise MediaError(f"{root}: {name[:80]!r} cannot be the name of a sequence")
    return [_open_sequence(root, name, year) for name in names]


def results_missing(sequence: DavisSequence, results: Path) -> list[str]:
    """Names of the files of one sequence that are missing in a folder of results."""
    files = [f"{name}.png" for name in sequence.frame_names]
    return [file for file in files if not (results / sequence.name / file).is_file()]


def _read_split(root: Path, year: Year, split: str) -> list[str]:
    # DAVIS 2016's own release lists pairs of picture and annotation under ImageSets/480p instead.
    candidates = [root / _SETS / year / f"{split}.txt"]
    if year == "2016":
        candidates.append(root / _SETS / "480p" / f"{split}.txt")
    for path in candidates:
        if path.is_file():
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise MediaError(f"{path}: cannot be read as a list of sequences ({error})") from error
            lines = [line.split()[0] for line in text.splitlines() if line.strip()]
            return list(dict.fromkeys(Path(line).parent.name if "/" in line else line for line in lines))
    known = sorted(p.stem for p in (root / _SETS / year).glob("*.txt"))
    have = f"; there are: {', '.join(known)}" if known else ""
    raise MediaError(f"{candidates[0]}: no such list of sequences{have}; or name them with --sequences a,b")


def _open_sequence(root: Path, name: str, year: Year) -> DavisSequence:
    frames_dir, masks_dir = root / _FRAMES / name, root / _MASKS / name
    for folder in (frames_dir, masks_dir):
        if not folder.is_dir():
            have = sorted(p.name for p in folder.parent.iterdir() if p.is_dir())
            more = ", ..." if len(have) > 12 else ""
            raise MediaError(f"{folder}: no such sequence; there are: {', '.join(have[:12])}{more}")
    names = tuple(sorted(p.stem for p in frames_dir.iterdir() if p.suffix.lower() in _FRAME_SUFFIXES))
    if not names:
        raise MediaError(f"{frames_dir}: no frames (JPEG or PNG pictures) in this sequence")
    masks = {p.stem for p in masks_dir.glob("*.png")}
    for lacking, folder, what in (
        (sorted(set(names) - masks), masks_dir, "annotations"),
        (sorted(masks - set(names)), frames_dir, "frames"),
    ):
        if lacking:
            raise MaskError(
                f"{folder}: {len(lacking)} {what} are missing for sequence '{name}': "
                f"{', '.join(lacking[:8])}{', ...' * (len(lacking) > 8)}"
            )
    sequence = DavisSequence(name, frames_dir, masks_dir, year, names)
    mask_hw, frame_hw = sequence.first_mask().shape, _first_frame_hw(frames_dir, names[0])
    if mask_hw != frame_hw:
        raise MaskError(
            f"{masks_dir / names[0]}.png: the mask is {mask_hw[1]} x {mask_hw[0]} pixels, the frame is "
            f"{frame_hw[1]} x {frame_hw[0]}"
        )
    return sequence


def _first_frame_hw(frames_dir: Path, name: str) -> tuple[int, int]:
    path = next(p for p in frames_dir.iterdir() if p.stem == name and p.suffix.lower() in _FRAME_SUFFIXES)
    width, height = upright_size(path)
    return height, width
