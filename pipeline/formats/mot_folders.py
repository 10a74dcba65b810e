"""MOTChallenge folders: one sequence or many, ``seqinfo.ini``, and MOT17's three copies of each sequence.

Layout (MOT15, 16, 17, 20 and data sets in the same form)::

    ROOT/[train|test|val/]NAME/seqinfo.ini  img1/000001.jpg  gt/gt.txt  det/det.txt

MOT17 has each sequence three times, ``MOT17-02-DPM``, ``-FRCNN`` and ``-SDP``: the same images and ground truth
with the detections of three detectors.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from pipeline.core.errors import LabelFileError, MediaError
from pipeline.core.files import IMAGE_SUFFIXES, is_component
from pipeline.core.records import VideoInfo
from pipeline.formats.image_folder import probe_folder
from pipeline.formats.json_file import LARGEST_FRAME

DETECTORS = ("DPM", "FRCNN", "SDP")
SPLITS = ("train", "val", "test")
#: Frame rate without a ``seqinfo.ini``; only times in seconds depend on it.
DEFAULT_FRAME_RATE = Fraction(30)
_NUMBER = re.compile(r"[+-]?\d{1,15}(\.\d{0,15})?(/[1-9]\d{0,8})?", re.ASCII)
_DETECTOR_SUFFIX = re.compile(rf"-({'|'.join(DETECTORS)})$")


@dataclass(frozen=True, slots=True)
class SequenceInfo:
    """The content of a ``seqinfo.ini``; None or the default for absent keys.

    Attributes:
        name: The sequence's name.
        image_folder: Folder of the images, relative to the sequence.
        frame_rate: Frames per second.
        num_frames: Number of frames.
        image_hw: Height and width in pixels.
    """

    name: str
    image_folder: str = "img1"
    frame_rate: Fraction | None = None
    num_frames: int | None = None
    image_hw: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class MotSequence:
    """One sequence folder.

    Attributes:
        folder: Its path.
        info: Its ``seqinfo.ini``, or the defaults.
        has_ini: Whether it has a ``seqinfo.ini``.
    """

    folder: Path
    info: SequenceInfo
    has_ini: bool

    @property
    def name(self) -> str:
        """The folder's name, also the name of its results."""
        return self.folder.name

    @property
    def detector(self) -> str | None:
        """MOT17's detector suffix, if any.

        >>> MotSequence(Path("MOT17-02-SDP"), SequenceInfo("MOT17-02-SDP"), True).detector
        'SDP'
        """
        match = _DETECTOR_SUFFIX.search(self.name)
        return match.group(1) if match else None

    @property
    def base_name(self) -> str:
        """The name without the detector suffix."""
        return _DETECTOR_SUFFIX.sub("", self.name)

    @property
    def image_dir(self) -> Path:
        """Folder of the images."""
        return self.folder / self.info.image_folder

    @property
    def gt_path(self) -> Path:
        """The ground truth; absent in test splits."""
        return self.folder / "gt" / "gt.txt"

    @property
    def det_path(self) -> Path:
        """The public detections."""
        return self.folder / "det" / "det.txt"


@dataclass(frozen=True, slots=True)
class OpenedSequence:
    """A sequence with its images.

    Attributes:
        sequence: The folder.
        video: Facts for the pipeline; size and length are those of the images.
        warnings: Warnings for the user, one line each.
    """

    sequence: MotSequence
    video: VideoInfo
    warnings: list[str] = field(default_factory=list)


def read_seqinfo(path: Path) -> SequenceInfo:
    """Read a ``seqinfo.ini``.

    Raises:
        LabelFileError: Not an INI file, no ``[Sequence]`` section, or a value that is not a positive number.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text(encoding="utf-8-sig"), source=str(path))
        section = parser["Sequence"]
    except OSError as error:
        raise LabelFileError(f"{path}: cannot be read ({error.strerror})") from error
    except (configparser.Error, KeyError, ValueError) as error:
        raise LabelFileError(f"{path}: not a seqinfo.ini: {' '.join(str(error).split())}") from error

    def number(key: str) -> Fraction | None:
        text = section.get(key)
        if text is None:
            return None
        if not _NUMBER.fullmatch(text.strip()):
            raise LabelFileError(f"{path}: {key} = {text[:40]!r} is not a number")
        value = Fraction(text.strip())
        if value <= 0:
            raise LabelFileError(f"{path}: {key} must be positive, got {text}")
        if value > LARGEST_FRAME:
            raise LabelFileError(f"{path}: {key} = {text[:40]} is too large")
        return value

    height, width, length = number("imHeight"), number("imWidth"), number("seqLength")
    return SequenceInfo(
        name=section.get("name", path.parent.name),
        image_folder=_folder_name(section.get("imDir", "img1"), path),
        frame_rate=number("frameRate"),
        num_frames=None if length is None else int(length),
        image_hw=None if height is None or width is None else (int(height), int(width)),
    )


def _folder_name(value: str, path: Path) -> str:
    """A folder's name from a file, which must not lead out of the sequence."""
    name = value.strip().rstrip("/\\")
    if not is_component(name):
        raise LabelFileError(f"{path}: imDir = {value[:40]!r} is not the name of a folder")
    return name


def load_sequence(folder: Path) -> MotSequence:
    """A sequence folder; its images are not needed.

    Raises:
        LabelFileError: The folder is not a MOT sequence, or its ``seqinfo.ini`` is not valid.
    """
    if not is_sequence(folder):
        raise LabelFileError(
            f"{folder}: not a MOT sequence; expected seqinfo.ini, or img1/ with gt/gt.txt or det/det.txt"
        )
    ini = folder / "seqinfo.ini"
    if ini.is_file():
        return MotSequence(folder, read_seqinfo(ini), has_ini=True)
    return MotSequence(folder, SequenceInfo(folder.name), has_ini=False)


def is_sequence(folder: Path) -> bool:
    """Whether a folder is laid out as one sequence."""
    labels = (folder / "gt" / "gt.txt").is_file() or (folder / "det" / "det.txt").is_file()
    return (folder / "seqinfo.ini").is_file() or labels or _has_images(folder / "img1")


def open_sequence(folder: Path) -> OpenedSequence:
    """A sequence with its images; without a ``seqinfo.ini`` the facts come from the images, with a warning.

    Raises:
        LabelFileError: The folder is not a MOT sequence.
        MediaError: It has no images, or images of different sizes.
    """
    sequence = load_sequence(folder)
    info = sequence.info
    warnings = []
    if not sequence.has_ini:
        warnings.append(f"{folder}: no seqinfo.ini; assuming {DEFAULT_FRAME_RATE} frames per second")
    if not sequence.image_dir.is_dir():
        raise MediaError(f"{sequence.image_dir}: no such folder; tracking needs the sequence's images")
    video = probe_folder(sequence.image_dir, info.frame_rate or DEFAULT_FRAME_RATE)
    if info.num_frames not in (None, video.num_frames):
        warnings.append(
            f"{folder}: seqinfo.ini says {info.num_frames} frames, the folder has {video.num_frames} images; "
            "using the images"
        )
    if info.image_hw not in (None, video.image_hw):
        warnings.append(f"{folder}: seqinfo.ini says {info.image_hw} (h, w), the images are {video.image_hw}")
    return OpenedSequence(sequence, video, warnings)


def find_sequences(
    root: Path, *, split: str | None = None, names: Sequence[str] = (), detector: str | None = None
) -> list[MotSequence]:
    """The sequences under a folder, sorted by name.

    Args:
        root: A sequence, a folder of sequences, or a folder of splits of them.
        split: Use only this subfolder.
        names: Use only these; a MOT17 name without suffix means all three detectors.
        detector: Of MOT17's three copies use only this one.

    Raises:
        LabelFileError: No sequence was found, or one of ``names`` is missing.
    """
    if not root.is_dir():
        raise LabelFileError(f"{root}: is not a folder")
    folders = _sequence_folders(root, split)
    found = [load_sequence(folder) for folder in folders]
    if detector is not None:
        found = [s for s in found if s.detector in (None, detector)]
    missing = [n for n in names if not any(n in (s.name, s.base_name) for s in found)]
    if missing:
        there = ", ".join(s.name for s in found) or "none"
        raise LabelFileError(f"{root}: no sequence {', '.join(missing)}; there are: {there}")
    if names:
        found = [s for s in found if s.name in names or s.base_name in names]
    if not found:
        raise LabelFileError(
            f"{root}: has no MOT sequence (folders with seqinfo.ini, or img1/ with gt/gt.txt or det/det.txt)"
        )
    return found


def _sequence_folders(root: Path, split: str | None) -> list[Path]:
    if split is not None:
        if not (root / split).is_dir():
            raise LabelFileError(f"{root}: has no split '{split}'")
        root = root / split
    elif is_sequence(root):
        return [root]
    folders = sorted(p for p in root.iterdir() if p.is_dir() and is_sequence(p))
    if not folders and split is None:
        splits = [root / name for name in SPLITS if (root / name).is_dir()]
        folders = [p for s in splits for p in sorted(s.iterdir()) if p.is_dir() and is_sequence(p)]
    return folders


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and any(p.suffix.lower() in IMAGE_SUFFIXES for p in folder.iterdir())
