"""What is evaluated: which ground truth counts, and which tracks are removed before scoring.

MOT16, MOT17, MOT20 (Milan et al. 2016, https://arxiv.org/abs/1603.00831, section 5.1, as TrackEval does it): in
every frame all ground truth of any class and flag is matched to the tracks at IoU 0.5; tracks matched to a
distractor class are deleted; then only pedestrians with flag 1 are left as targets. Tracks on cars stay false
positives. MOT15 has no classes: flag 1 is a target.

BDD100K (Yu et al. 2020, https://arxiv.org/abs/1805.04687, and its official configuration): eight classes, each
scored alone. Crowds and distractors are not targets; tracks that match no target and lie in one of them with more
than half of their own area are deleted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import box_iou
from pipeline.core.errors import LabelFileError
from pipeline.evaluation.tracking_metrics import IOU_THRESHOLD, best_pairs
from pipeline.formats.boxes import BoxTable

Benchmark = Literal["plain", "MOT15", "MOT16", "MOT17", "MOT20"]
FloatArray = npt.NDArray[np.float64]
#: Finds the pairs in a matrix of IoU; returns row and column numbers.
Matcher = Callable[[FloatArray], tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]

PEDESTRIAN = "1"
#: Person on a vehicle, static person, distractor, reflection; MOT20 adds non-motorized vehicles.
DISTRACTORS: Mapping[Benchmark, frozenset[str]] = {
    "MOT16": frozenset({"2", "7", "8", "12"}),
    "MOT17": frozenset({"2", "7", "8", "12"}),
    "MOT20": frozenset({"2", "6", "7", "8", "12"}),
}

BDD_CLASSES = ("pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
BDD_SUPER_CLASSES: Mapping[str, tuple[str, ...]] = {
    "human": ("pedestrian", "rider"),
    "vehicle": ("car", "bus", "truck", "train"),
    "bike": ("motorcycle", "bicycle"),
}
#: Other names of the eight classes in BDD100K's files.
BDD_ALIASES: Mapping[str, str] = {
    "bike": "bicycle",
    "motor": "motorcycle",
    "person": "pedestrian",
    "van": "car",
    "caravan": "car",
}
BDD_DISTRACTORS = ("other person", "other vehicle", "trailer")
_IGNORED_SHARE = 0.5
_EPS = float(np.finfo(np.float64).eps)


def match_at_half(iou: FloatArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The matching with the highest total IoU among pairs of at least 0.5."""
    return best_pairs(np.where(iou < IOU_THRESHOLD - _EPS, 0.0, iou))


def mot_targets(
    gt: BoxTable, tracks: BoxTable, *, benchmark: Benchmark = "plain", classes: Collection[str] = ()
) -> tuple[BoxTable, BoxTable]:
    """Targets and the tracks to score against them, by a MOTChallenge benchmark's rules.

    Args:
        gt: All ground truth of a sequence.
        tracks: All results of it.
        benchmark: Whose rules; ``plain`` (any data set of that format) and MOT15 take all flagged boxes.
        classes: With ``plain``, only these classes are targets; tracks that match a box of another class are
            removed first, because results seldom name a class.

    Raises:
        LabelFileError: The benchmark needs classes and the ground truth has none, or a track is not a pedestrian.
    """
    distractors: Collection[str] = DISTRACTORS.get(benchmark, ())
    wanted: Collection[str] = (PEDESTRIAN,) if distractors else classes
    if benchmark == "plain" and classes:
        distractors = set(gt.categories) - set(classes)
        tracks = tracks.of_categories([*classes, ""])
    elif distractors:
        _check_classes(gt, tracks, benchmark)
    if distractors:
        tracks = _without_matches_to(gt, tracks, distractors)
    targets = gt.select(np.flatnonzero(~gt.ignored))
    return (targets.of_categories(list(wanted)) if wanted else targets), tracks


def _check_classes(gt: BoxTable, tracks: BoxTable, benchmark: str) -> None:
    if len(gt) and not any(gt.categories):
        raise LabelFileError(
            f"{benchmark} rules need the class column, and the ground truth has none; use MOT15 rules"
        )
    others = sorted(set(tracks.categories) - {"", PEDESTRIAN})
    if others:
        raise LabelFileError(
            f"{benchmark} scores pedestrians (class 1) only, but the results hold class {others[0]}"
        )


def _without_matches_to(gt: BoxTable, tracks: BoxTable, distractors: Collection[str]) -> BoxTable:
    length = max(gt.num_frames, tracks.num_frames)
    kept = np.ones(len(tracks), np.bool_)
    for gt_rows, track_rows in zip(gt.by_frame(length), tracks.by_frame(length), strict=True):
        rows, columns = match_at_half(box_iou(gt.xyxy[gt_rows], tracks.xyxy[track_rows]))
        for row, column in zip(gt_rows[rows], track_rows[columns], strict=True):
            kept[column] = gt.categories[row] not in distractors
    return tracks.select(kept)


def bdd_categories(table: BoxTable, classes: Collection[str] = BDD_CLASSES, *, source: str = "labels") -> BoxTable:
    """The table with official category names; distractors are marked as ignored.

    Args:
        table: Boxes of ground truth or results.
        classes: The classes to be scored. A name among them is never taken as an alias.
        source: What to name in an error.

    Raises:
        LabelFileError: A category that is neither of the classes, nor an alias, nor a distractor.
    """
    names = tuple(c if c in classes else BDD_ALIASES.get(c, c) for c in table.categories)
    unknown = sorted(set(names) - set(classes) - set(BDD_DISTRACTORS) - set(BDD_CLASSES))
    if unknown:
        raise LabelFileError(
            f"{source}: unknown category '{unknown[0]}', expected {', '.join(classes)}; name others with --classes"
        )
    distracting = np.array([name not in classes for name in names], np.bool_)
    return dataclasses.replace(table, categories=names, ignored=table.ignored | distracting)


def bdd_targets(
    gt: BoxTable,
    tracks: BoxTable,
    category: str,
    *,
    matcher: Matcher = match_at_half,
    pixel_extent: float = 0.0,
) -> tuple[BoxTable, BoxTable]:
    """Targets of one class and the tracks of that class to score against them.

    Args:
        gt: Ground truth of one video, from :func:`bdd_categories`.
        tracks: Results of it, from the same.
        category: The class.
        matcher: Which tracks count as matched and are safe from deletion.
        pixel_extent: 1 for the official scores, see :func:`pipeline.core.arrays.box_iou`.
    """
    targets = gt.select(np.flatnonzero(~gt.ignored)).of_categories([category])
    regions = gt.select(np.flatnonzero(gt.ignored))
    tracks = tracks.of_categories([category])
    length = max(gt.num_frames, tracks.num_frames)
    kept = np.ones(len(tracks), np.bool_)
    by_frame = zip(targets.by_frame(length), regions.by_frame(length), tracks.by_frame(length), strict=True)
    for target_rows, region_rows, track_rows in by_frame:
        if not len(region_rows) or not len(track_rows):
            continue
        iou = box_iou(targets.xyxy[target_rows], tracks.xyxy[track_rows], pixel_extent=pixel_extent)
        unmatched = np.ones(len(track_rows), np.bool_)
        unmatched[matcher(iou)[1]] = False
        share = share_inside(tracks.xyxy[track_rows], regions.xyxy[region_rows], pixel_extent=pixel_extent)
        kept[track_rows] = ~(unmatched & (share > _IGNORED_SHARE + _EPS).any(axis=1))
    return targets, tracks.select(kept)


def share_inside(boxes: npt.ArrayLike, regions: npt.ArrayLike, *, pixel_extent: float = 0.0) -> FloatArray:
    """Which share of each box's own area lies in each region: ``(N, 4)`` and ``(M, 4)`` to float64 ``(N, M)``.

    >>> share_inside([[0, 0, 2, 2]], [[1, 0, 9, 9]]).tolist()
    [[0.5]]
    """
    a, b = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(regions, np.float64).reshape(-1, 4)
    size = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2]) + pixel_extent
    intersection = np.clip(size, 0, None).prod(axis=-1)
    area = np.clip(a[:, 2:] - a[:, :2] + pixel_extent, 0, None).prod(axis=-1)[:, None]
    share: FloatArray = np.divide(intersection, area, out=np.zeros_like(intersection), where=area > 0)
    return share
