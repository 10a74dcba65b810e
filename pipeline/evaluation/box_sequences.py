"""Videos with box labels for tracking and retrieval: images, ground truth and detections, found on disk.

MOTChallenge folders are found by :mod:`pipeline.formats.mot_folders`. For BDD100K box tracks, labels are read from
``labels/box_track_20/SPLIT/VIDEO.json`` (the official layout), or any folder of ``.json`` files, or one file; the
images of a video are looked for in ``images/track/SPLIT/VIDEO``, ``images/VIDEO``, ``VIDEO/img1`` and ``VIDEO``
under the root and beside the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

from pipeline.core.errors import LabelFileError
from pipeline.core.locations import CONFIGS
from pipeline.core.records import Detections, VideoInfo
from pipeline.evaluation.tracking_preprocess import BDD_CLASSES, bdd_categories, mot_targets
from pipeline.formats.bdd import FRAME_RATE, BddVideo, read_videos
from pipeline.formats.boxes import BoxTable, to_detections
from pipeline.formats.detections import read_detections
from pipeline.formats.image_folder import probe_folder
from pipeline.formats.mot import read_table
from pipeline.formats.mot_folders import MotSequence, find_sequences, open_sequence

DataFormat = Literal["mot", "bdd"]

TRACKING_CONFIG = CONFIGS / "tracking.yaml"
"""The config for measurements on labeled boxes."""


@dataclass(frozen=True, slots=True)
class BoxSequence:
    """One video with labels.

    Attributes:
        name: What results are named after.
        video: Its images.
        targets: Ground truth that counts, empty where the data has none.
        truth: All ground truth, with what is ignored.
        bdd: The labels as read, for BDD100K data.
        det_path: The detector's boxes that come with the data, if any.
        warnings: One line each.
    """

    name: str
    video: VideoInfo
    targets: BoxTable
    truth: BoxTable
    bdd: BddVideo | None = None
    det_path: Path | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def num_frames(self) -> int:
        """Number of images."""
        return self.video.num_frames or 0

    def detections(self, source: str) -> tuple[dict[int, Detections], list[str]]:
        """Boxes to track by frame index, and warnings about them.

        Args:
            source: ``gt`` for the ground truth, ``det`` for the detections that come with the data, or the path of
                a file, or of a folder with ``NAME.txt`` or ``NAME.json``.

        Raises:
            LabelFileError: There are none, or the file does not fit the video.
        """
        if source == "gt":
            if not len(self.targets):
                raise LabelFileError(f"{self.name}: has no ground truth to take detections from")
            found, counts = to_detections(self.targets, self.video.image_hw)
            message = counts.warning(f"{self.name} ground truth")
            return found, [message] if message else []
        detected = read_detections(self._detection_file(source), self.video)
        return dict(detected), detected.warnings

    def _detection_file(self, source: str) -> Path:
        if source == "det":
            if self.det_path is None or not self.det_path.is_file():
                raise LabelFileError(f"{self.name}: comes without detections; give --detections gt or a file")
            return self.det_path
        path = Path(source)
        if path.is_file():
            return path
        tried = [path / f"{self.name}{suffix}" for suffix in (".txt", ".json")]
        for candidate in tried:
            if candidate.is_file():
                return candidate
        raise LabelFileError(
            f"{path}: no detections for '{self.name}' (looked for {tried[0].name}, {tried[1].name})"
        )


def load_sequences(
    data_format: DataFormat,
    root: Path,
    *,
    split: str | None = None,
    names: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> list[BoxSequence]:
    """All videos under ``root``, sorted by name.

    Args:
        data_format: ``mot`` or ``bdd``.
        root: The data's folder.
        split: Only this one, for example ``val``.
        names: Only these videos.
        classes: Classes that count. Without any: all of MOT's flagged boxes, BDD100K's eight classes.

    Raises:
        LabelFileError: Nothing found, a missing name, or a bad label (file and place named).
        MediaError: A video without images, or with images of different sizes.
    """
    if data_format == "mot":
        return [_mot_sequence(s, classes) for s in find_sequences(root, split=split, names=names)]
    videos = read_videos(_bdd_labels(root, split))
    missing = [name for name in names if name not in videos]
    if missing:
        raise LabelFileError(f"{root}: no video {', '.join(missing)}; there are: {', '.join(sorted(videos))}")
    return [
        _bdd_sequence(videos[name], root, split, classes) for name in sorted(videos) if not names or name in names
    ]


def _mot_sequence(sequence: MotSequence, classes: Sequence[str]) -> BoxSequence:
    opened = open_sequence(sequence.folder)
    truth = targets = BoxTable.empty()
    if sequence.gt_path.is_file():
        truth = read_table(sequence.gt_path, kind="gt", num_frames=opened.video.num_frames)
        targets, _ = mot_targets(truth, BoxTable.empty(), classes=classes)
    return BoxSequence(
        sequence.name, opened.video, targets, truth, det_path=sequence.det_path, warnings=opened.warnings
    )


def _bdd_labels(root: Path, split: str | None) -> Path:
    """The labels' file or folder."""
    if root.is_file():
        return root
    official = root / "labels" / "box_track_20"
    splits = [split] if split else ["val", "train"]
    candidates = [official / name for name in splits] + [root / "labels", root / "bdd", root]
    for folder in candidates:
        if folder.is_dir() and any(folder.glob("*.json")):
            return folder
    raise LabelFileError(f"{root}: no BDD100K labels (looked for {candidates[0]} and .json files in {root})")


def _bdd_sequence(video: BddVideo, root: Path, split: str | None, classes: Sequence[str]) -> BoxSequence:
    base = root.parent if root.is_file() else root
    splits = [split] if split else ["val", "train", "test"]
    tails = [Path("images", "track", name, video.name) for name in splits]
    tails += [Path("images", video.name), Path(video.name, "img1"), Path(video.name)]
    tried = [folder / tail for folder in (base, base.parent) for tail in tails]
    images = next((path for path in tried if path.is_dir()), None)
    if images is None:
        raise LabelFileError(f"{base}: no images of '{video.name}' (looked for {tried[0]}, {tried[-2]}, ...)")
    info = probe_folder(images, Fraction(FRAME_RATE))
    warnings = []
    if video.num_frames != info.num_frames:
        warnings.append(f"{images}: holds {info.num_frames} images, the labels list {video.num_frames} frames")
    truth = bdd_categories(video.table, tuple(classes) or BDD_CLASSES, source=f"labels of '{video.name}'")
    targets = truth.select(~truth.ignored)
    return BoxSequence(video.name, info, targets, truth, bdd=video, warnings=warnings)
