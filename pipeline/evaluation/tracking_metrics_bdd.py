"""BDD100K's official box-tracking scores: CLEAR and IDF1 as py-motmetrics defines them.

BDD100K is scored by a tool built on py-motmetrics (https://github.com/cheind/py-motmetrics), whose CLEAR
differs from the one of :mod:`pipeline.evaluation.tracking_metrics`:

- a pair stays matched for as long as its boxes overlap, and an object remembers the *last track it ever had*,
  also over frames in which it was missed;
- the remaining boxes are matched so that as many pairs as possible are made, and only then the IoU is best;
- an object is mostly tracked from 80 % on (not above it); a fragmentation is a miss that follows a hit and is
  followed by one later.

Widths and heights are one pixel more than ``x2 - x1``: the corners name the pixels that belong to the box.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from pipeline.evaluation.tracking_counts import Counts, Identity, total
from pipeline.evaluation.tracking_metrics import IOU_THRESHOLD, Pairing, identity, pair
from pipeline.evaluation.tracking_preprocess import BDD_CLASSES, BDD_SUPER_CLASSES, bdd_targets
from pipeline.formats.boxes import BoxTable

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: BDD100K's corners name the last pixel inside the box.
PIXEL_EXTENT = 1.0
_MOSTLY_TRACKED = 0.8
_PARTLY_TRACKED = 0.2


@dataclass(frozen=True)
class OfficialCounts(Counts):
    """Counts of py-motmetrics; they add up over videos and classes.

    Attributes:
        hits: Matched boxes, switches included.
        misses: Ground-truth boxes without a track.
        false_positives: Tracked boxes without ground truth.
        switches: Matches to another track than the last.
        mostly_tracked: Objects found in at least 80 % of their frames.
        partly_tracked: In 20 to 80 %.
        mostly_lost: In less than 20 %.
        fragmentations: Gaps while an object is tracked.
        iou_sum: Sum of IoU over the hits.
        identity: IDF1's counts.
    """

    hits: int
    misses: int
    false_positives: int
    switches: int
    mostly_tracked: int
    partly_tracked: int
    mostly_lost: int
    fragmentations: int
    iou_sum: float
    identity: Identity

    @property
    def mota(self) -> float:
        """Accuracy; not a number, or minus infinity, for a class without ground truth."""
        errors = self.misses + self.switches + self.false_positives
        objects = self.hits + self.misses
        if objects:
            return 1 - errors / objects
        return -math.inf if errors else math.nan

    @property
    def motp(self) -> float:
        """Mean IoU of the hits; not a number without any."""
        return self.iou_sum / self.hits if self.hits else math.nan

    @property
    def idf1(self) -> float:
        """Identity F1; not a number for a class without any box."""
        boxes = 2 * self.identity.idtp + self.identity.idfn + self.identity.idfp
        return 2 * self.identity.idtp / boxes if boxes else math.nan

    def as_dict(self) -> dict[str, float | int]:
        """Ratios in percent and counts by their official names; a ratio that is not a number is 0, as there."""
        return {
            "MOTA": 100 * _finite(self.mota),
            "IDF1": 100 * _finite(self.idf1),
            "MOTP": 100 * _finite(self.motp),
            "FP": self.false_positives,
            "FN": self.misses,
            "IDSw": self.switches,
            "MT": self.mostly_tracked,
            "PT": self.partly_tracked,
            "ML": self.mostly_lost,
            "FM": self.fragmentations,
        }


def match_most(iou: FloatArray) -> tuple[IntArray, IntArray]:
    """As many pairs of IoU at least 0.5 as possible, and among those matchings the closest.

    >>> [x.tolist() for x in match_most(np.array([[0.9, 0.6], [0.6, 0.0]]))]
    [[0, 1], [1, 0]]
    """
    return _cheapest(_distances(iou))


def _distances(iou: FloatArray) -> FloatArray:
    """One minus IoU; infinite where the boxes may not match."""
    distance = 1.0 - iou
    return np.where(distance > 1.0 - IOU_THRESHOLD, np.inf, distance)


def _cheapest(distance: FloatArray) -> tuple[IntArray, IntArray]:
    allowed = np.isfinite(distance)
    if not allowed.any():
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    # One forbidden pair costs more than any number of allowed ones.
    forbidden = 2.0 * min(distance.shape) * (float(np.abs(distance[allowed]).max()) + 1.0)
    rows, columns = linear_sum_assignment(np.where(allowed, distance, forbidden))
    kept = allowed[rows, columns]
    return rows[kept], columns[kept]


def official_counts(pairing: Pairing) -> OfficialCounts:
    """Counts of one class of one video."""
    last = np.full(pairing.num_gt_ids, -1)
    history: list[list[bool]] = [[] for _ in range(pairing.num_gt_ids)]
    hits = switches = 0
    iou_sum = 0.0
    for gt_ids, track_ids, similarity in zip(pairing.gt_ids, pairing.track_ids, pairing.similarity, strict=True):
        distance = _distances(similarity)
        rows, columns = _continued(last[gt_ids], track_ids, distance)
        rest = distance.copy()
        rest[rows, :] = np.inf
        rest[:, columns] = np.inf
        new_rows, new_columns = _cheapest(rest)
        before = last[gt_ids[new_rows]]
        switches += int(((before >= 0) & (before != track_ids[new_columns])).sum())
        last[gt_ids[new_rows]] = track_ids[new_columns]
        rows, columns = np.concatenate([rows, new_rows]), np.concatenate([columns, new_columns])
        hits += len(rows)
        iou_sum += float(similarity[rows, columns].sum())
        found = set(rows.tolist())
        for row, identity_number in enumerate(gt_ids):
            history[identity_number].append(row in found)
    ratios = [sum(h) / len(h) for h in history if h]
    mostly = sum(r >= _MOSTLY_TRACKED for r in ratios)
    lost = sum(r < _PARTLY_TRACKED for r in ratios)
    return OfficialCounts(
        hits=hits,
        misses=pairing.num_gt - hits,
        false_positives=pairing.num_tracked - hits,
        switches=switches,
        mostly_tracked=mostly,
        partly_tracked=len(ratios) - mostly - lost,
        mostly_lost=lost,
        fragmentations=sum(_gaps(h) for h in history),
        iou_sum=iou_sum,
        identity=identity(pairing),
    )


def _continued(last: IntArray, track_ids: IntArray, distance: FloatArray) -> tuple[IntArray, IntArray]:
    """Pairs of boxes with the track they had last, in the order of the ground truth."""
    rows, columns = [], []
    for row, track in enumerate(last):
        column = np.flatnonzero(track_ids == track)
        if track >= 0 and len(column) and column[0] not in columns and np.isfinite(distance[row, column[0]]):
            rows.append(row)
            columns.append(int(column[0]))
    return np.array(rows, np.int64), np.array(columns, np.int64)


def _gaps(found: list[bool]) -> int:
    """Runs of misses between two hits."""
    if not any(found):
        return 0
    first, end = found.index(True), len(found) - found[::-1].index(True)
    inner = found[first:end]
    return sum(before and not after for before, after in pairwise(inner))


@dataclass(frozen=True)
class OfficialScores:
    """Scores of a set of videos.

    Attributes:
        by_class: Counts of every class.
        super_classes: Which classes are pooled under which name.
    """

    by_class: Mapping[str, OfficialCounts]
    super_classes: Mapping[str, tuple[str, ...]]

    def as_dict(self) -> dict[str, dict[str, float | int]]:
        """Rows by name: classes, super-categories, ``AVERAGE`` over the classes, ``OVERALL`` pooled."""
        rows = {name: counts.as_dict() for name, counts in self.by_class.items()}
        for name, members in self.super_classes.items():
            rows[name] = total(self.by_class[m] for m in members).as_dict()
        means = {m: float(np.mean([rows[c][m] for c in self.by_class])) for m in ("MOTA", "IDF1", "MOTP")}
        overall = total(self.by_class.values()).as_dict()
        return rows | {"AVERAGE": overall | means, "OVERALL": overall}


def official_scores(
    videos: Mapping[str, tuple[BoxTable, BoxTable]], classes: tuple[str, ...] = BDD_CLASSES
) -> OfficialScores:
    """Official scores of ``{video: (ground truth, results)}``, with categories from ``bdd_categories``.

    Raises:
        ValueError: There are no videos or no classes.
    """
    by_class = {}
    for category in classes:
        counts = []
        for gt, tracks in videos.values():
            targets, kept = bdd_targets(gt, tracks, category, matcher=match_most, pixel_extent=PIXEL_EXTENT)
            counts.append(official_counts(pair(targets, kept, pixel_extent=PIXEL_EXTENT)))
        by_class[category] = total(counts)
    present = {n: m for n, m in BDD_SUPER_CLASSES.items() if set(m) <= set(classes)}
    return OfficialScores(by_class, present)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
