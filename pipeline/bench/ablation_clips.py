"""What ``bench ablation`` measures on: labeled clips, and the scores of propagating their masks.

A clip is a DAVIS 2016 sequence, whose one object is given in the first frame, or a MOTChallenge folder with exact
index masks under ``masks/`` (composites), whose objects are given as soon as they are large enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from pipeline.core.errors import MediaError
from pipeline.core.resizing import id_areas
from pipeline.evaluation.davis_metrics import boundary_measure, region_similarity
from pipeline.formats.davis import DavisSequence, year_mask
from pipeline.formats.mot_folders import find_sequences, open_sequence
from pipeline.formats.palette import read_indexed_png

IndexMask = npt.NDArray[np.uint8]

LEAST_AREA_PX = 800
"""An object of a composite is given in the first frame that shows so much of it."""
GONE_AFTER = 5
"""An object counts as gone from its fifth frame in a row without a pixel on."""
GONE_CONFIDENCE = 0.2


@dataclass(frozen=True, slots=True)
class Clip:
    """Frames with annotations.

    Attributes:
        name: Of the clip.
        frames: Its pictures, in order.
        masks: Its annotations, one per frame.
        given: Index masks by frame index: all the propagation is told.
        single: Whether all ids of an annotation are one object (DAVIS 2016).
    """

    name: str
    frames: tuple[Path, ...] = field(repr=False)
    masks: tuple[Path, ...] = field(repr=False)
    given: Mapping[int, IndexMask] = field(repr=False)
    single: bool

    @classmethod
    def of_davis(cls, sequence: DavisSequence) -> Clip:
        """The clip of a DAVIS 2016 sequence."""
        names = sequence.frame_names
        return cls(
            sequence.name,
            tuple(sequence.frames_dir / f"{name}.jpg" for name in names),
            tuple(sequence.masks_dir / f"{name}.png" for name in names),
            {0: sequence.first_mask()},
            single=True,
        )

    @property
    def frames_dir(self) -> Path:
        """Folder of the pictures."""
        return self.frames[0].parent

    def annotation(self, index: int) -> IndexMask:
        """Ids of the objects in a frame, uint8 ``(H, W)``."""
        return year_mask(read_indexed_png(self.masks[index]), "2016" if self.single else "2017")


@dataclass(frozen=True, slots=True)
class Score:
    """The scores of one object over the frames of a clip.

    Attributes:
        J: Region similarity, in percent.
        F: Boundary measure, in percent.
        rank_correlation: Spearman's, of confidence and J over frames; None where one of them never changes.
        seconds: Processor time of propagation per frame of the clip.
        gone: Frames in which the object has been gone for a while.
        gone_confident: Those of them with a confidence of 0.2 or more.
        swaps: How often its mask went over to another object.
    """

    J: float
    F: float
    rank_correlation: float | None = None
    seconds: float = 0.0
    gone: int = 0
    gone_confident: int = 0
    swaps: int = 0

    @property
    def mean(self) -> float:
        """The mean of J and F, in percent."""
        return (self.J + self.F) / 2

    def as_dict(self) -> dict[str, Any]:
        """All numbers by name."""
        return asdict(self)


class ObjectScorer:
    """Collects the scores of one object, frame by frame, from the one after its mask was given.

    J and F are those of the scored frames; everything else is counted in all of them.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._measures: list[tuple[float, float]] = []
        self._overlaps: list[tuple[float, float]] = []
        self._absent = self._gone = self._gone_confident = self._swaps = 0
        self._astray = False

    def add(self, labels: IndexMask, truth: IndexMask, confidence: float, *, scored: bool = True) -> None:
        """Count a frame: index masks ``(H, W)`` of the propagation and the annotation."""
        ours, wanted = labels == self._number, truth == self._number
        overlap = region_similarity(ours, wanted)
        self._overlaps.append((overlap, confidence))
        if scored:
            self._measures.append((overlap, boundary_measure(ours, wanted)))
        self._absent = 0 if wanted.any() else self._absent + 1
        if self._absent >= GONE_AFTER:
            self._gone += 1
            self._gone_confident += confidence >= GONE_CONFIDENCE
        astray = _is_on_another(ours, truth, self._number)
        self._swaps += astray and not self._astray
        self._astray = astray

    def score(self, seconds: float) -> Score | None:
        """The scores so far; None where no frame has been scored."""
        if not self._measures:
            return None
        overlaps, confidence = np.array(self._overlaps).T
        varies = np.ptp(overlaps) > 0 and np.ptp(confidence) > 0
        rank = float(spearmanr(overlaps, confidence).statistic) if varies else None
        j, f = (100 * float(value) for value in np.mean(self._measures, axis=0))
        return Score(j, f, rank, seconds, self._gone, self._gone_confident, self._swaps)


def open_composites(root: Path, names: Sequence[str] | None = None) -> list[Clip]:
    """The MOTChallenge folders under a root that have an index mask per image in ``masks/``.

    Raises:
        LabelFileError: There is no such folder, or none of a name.
        MediaError: A folder lacks masks, or shows no object large enough.
    """
    clips = []
    for sequence in find_sequences(root, names=names or ()):
        opened = open_sequence(sequence.folder)
        frames = tuple(sorted(p for p in sequence.image_dir.iterdir() if p.suffix.lower() in (".jpg", ".png")))
        masks = tuple(sequence.folder / "masks" / f"{frame.stem}.png" for frame in frames)
        if missing := [path for path in masks if not path.is_file()]:
            raise MediaError(f"{missing[0]}: no such file; each image needs an index mask of the same name")
        given = _given(masks)
        if not given:
            raise MediaError(f"{opened.sequence.folder / 'masks'}: no object has {LEAST_AREA_PX} pixels")
        clips.append(Clip(sequence.name, frames, masks, given, single=False))
    return clips


def _given(masks: Sequence[Path]) -> dict[int, IndexMask]:
    """Each object's mask in the first frame that shows enough of it; by frame index."""
    given: dict[int, IndexMask] = {}
    known: set[int] = {0, 255}
    for index, path in enumerate(masks):
        mask = read_indexed_png(path)
        new = [n for n, area in enumerate(id_areas(mask).tolist()) if area >= LEAST_AREA_PX and n not in known]
        if new:
            given[index] = np.where(np.isin(mask, new), mask, np.uint8(0))
            known.update(new)
    return given


def _is_on_another(ours: npt.NDArray[np.bool_], truth: IndexMask, number: int) -> bool:
    """Whether a mask is on another object: the one whose pixels in the truth it covers most."""
    areas = np.bincount(truth[ours], minlength=256)
    areas[[0, 255]] = 0
    return bool(areas.any()) and int(areas.argmax()) != number
