"""CLEAR, IDF1 and HOTA of box tracks, as TrackEval defines them.

    CLEAR: Bernardin and Stiefelhagen 2008, https://doi.org/10.1155/2008/246309
    IDF1:  Ristani et al. 2016, https://arxiv.org/abs/1609.01775
    HOTA:  Luiten et al. 2020, https://arxiv.org/abs/2009.07736

Why not a library: ``trackeval`` 1.3.0 is right and takes plain arrays, and ``trackers`` 2.6.1 gives the same
numbers, but both require ``opencv-python``, which overwrites the headless build this project depends on and
needs libGL, so that ``import cv2`` fails on a server; ``trackeval`` adds pycocotools as well. So the three
metrics are written out here and the tests hold them equal to TrackEval on random tracks and on recorded numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from pipeline.core.arrays import box_iou
from pipeline.evaluation.tracking_counts import HOTA_ALPHAS, Clear, Hota, Identity, TrackingScores, total
from pipeline.formats.boxes import BoxTable

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

#: IoU from which a box counts as found, for CLEAR and IDF1.
IOU_THRESHOLD = 0.5
_EPS = float(np.finfo(np.float64).eps)
#: Outweighs any IoU, so that a continued identity always wins the matching of CLEAR.
_CONTINUATION_BONUS = 1000.0


@dataclass(frozen=True, slots=True)
class Pairing:
    """Ground truth and tracks of one sequence, frame by frame, with their similarities.

    Attributes:
        gt_ids: One int64 ``(G_t,)`` per frame, numbered 0 .. num_gt_ids - 1, unique in a frame.
        track_ids: One int64 ``(T_t,)`` per frame, numbered 0 .. num_track_ids - 1, unique in a frame.
        similarity: One float64 ``(G_t, T_t)`` per frame, in [0, 1].
        num_gt_ids: Number of ground-truth identities.
        num_track_ids: Number of tracks.
    """

    gt_ids: tuple[IntArray, ...]
    track_ids: tuple[IntArray, ...]
    similarity: tuple[FloatArray, ...]
    num_gt_ids: int
    num_track_ids: int

    @property
    def num_gt(self) -> int:
        """Ground-truth boxes over all frames."""
        return sum(len(ids) for ids in self.gt_ids)

    @property
    def num_tracked(self) -> int:
        """Tracked boxes over all frames."""
        return sum(len(ids) for ids in self.track_ids)


def pair(gt: BoxTable, tracks: BoxTable, num_frames: int | None = None, *, pixel_extent: float = 0.0) -> Pairing:
    """Pair two tables frame by frame, with the IoU of every pair of boxes.

    Args:
        gt: Ground truth, every row a target (filter ignored boxes first).
        tracks: Tracker output.
        num_frames: Length of the sequence; up to the last box of either by default.
        pixel_extent: See :func:`pipeline.core.arrays.box_iou`.
    """
    length = max(gt.num_frames, tracks.num_frames, num_frames or 0)
    gt_names, gt_ids = np.unique(gt.ids, return_inverse=True)
    track_names, track_ids = np.unique(tracks.ids, return_inverse=True)
    gt_rows, track_rows = gt.by_frame(length), tracks.by_frame(length)
    return Pairing(
        gt_ids=tuple(gt_ids[r] for r in gt_rows),
        track_ids=tuple(track_ids[r] for r in track_rows),
        similarity=tuple(
            box_iou(gt.xyxy[g], tracks.xyxy[t], pixel_extent=pixel_extent)
            for g, t in zip(gt_rows, track_rows, strict=True)
        ),
        num_gt_ids=len(gt_names),
        num_track_ids=len(track_names),
    )


def clear(pairing: Pairing, threshold: float = IOU_THRESHOLD) -> Clear:
    """CLEAR counts of one sequence.

    The matching of a frame prefers the pairs of the previous frame *that had boxes on both sides*; frames
    without any are counted but leave that memory as it is.
    """
    if not pairing.num_tracked or not pairing.num_gt:
        return Clear(fn=pairing.num_gt, fp=pairing.num_tracked, mostly_lost=pairing.num_gt_ids)
    last = np.full(pairing.num_gt_ids, -1)
    previous = np.full(pairing.num_gt_ids, -1)
    present, found, segments = (np.zeros(pairing.num_gt_ids, np.int64) for _ in range(3))
    tp = fp = fn = switches = 0
    iou_sum = 0.0
    for gt_ids, track_ids, similarity in zip(pairing.gt_ids, pairing.track_ids, pairing.similarity, strict=True):
        present[gt_ids] += 1
        if not len(gt_ids) or not len(track_ids):
            fn, fp = fn + len(gt_ids), fp + len(track_ids)
            continue
        bonus = _CONTINUATION_BONUS * (track_ids[None, :] == previous[gt_ids][:, None])
        rows, columns = best_pairs(np.where(similarity < threshold - _EPS, 0.0, bonus + similarity))
        objects, tracks = gt_ids[rows], track_ids[columns]
        switches += int(((last[objects] >= 0) & (last[objects] != tracks)).sum())
        found[objects] += 1
        segments[objects] += previous[objects] < 0
        last[objects] = tracks
        previous[:] = -1
        previous[objects] = tracks
        tp, fn, fp = tp + len(rows), fn + len(gt_ids) - len(rows), fp + len(track_ids) - len(rows)
        iou_sum += float(similarity[rows, columns].sum())
    ratio = found[present > 0] / present[present > 0]
    mostly, at_least_partly = int((ratio > 0.8).sum()), int((ratio >= 0.2).sum())
    return Clear(
        tp=tp,
        fn=fn,
        fp=fp,
        id_switches=switches,
        mostly_tracked=mostly,
        partly_tracked=at_least_partly - mostly,
        mostly_lost=pairing.num_gt_ids - at_least_partly,
        fragmentations=int((segments[segments > 0] - 1).sum()),
        iou_sum=iou_sum,
    )


def identity(pairing: Pairing, threshold: float = IOU_THRESHOLD) -> Identity:
    """Identity counts of one sequence.

    An unassigned identity costs all its boxes, an assigned pair costs those the two do not share, so the
    cheapest assignment is the one that shares the most boxes: one Hungarian on the shared counts.
    """
    shared = np.zeros((pairing.num_gt_ids, pairing.num_track_ids), np.int64)
    for gt_ids, track_ids, similarity in zip(pairing.gt_ids, pairing.track_ids, pairing.similarity, strict=True):
        rows, columns = np.nonzero(similarity >= threshold)
        shared[gt_ids[rows], track_ids[columns]] += 1
    rows, columns = linear_sum_assignment(shared, maximize=True)
    idtp = int(shared[rows, columns].sum())
    return Identity(idtp=idtp, idfn=pairing.num_gt - idtp, idfp=pairing.num_tracked - idtp)


def hota(pairing: Pairing) -> Hota:
    """HOTA counts of one sequence."""
    if not pairing.num_tracked or not pairing.num_gt:
        flat = np.ones_like(HOTA_ALPHAS)
        return dataclasses.replace(Hota.zero(), fn=flat * pairing.num_gt, fp=flat * pairing.num_tracked)
    gt_counts, track_counts, alignment = _global_alignment(pairing)
    matches = np.zeros((len(HOTA_ALPHAS), pairing.num_gt_ids, pairing.num_track_ids))
    iou_sum = np.zeros_like(HOTA_ALPHAS)
    for gt_ids, track_ids, similarity in zip(pairing.gt_ids, pairing.track_ids, pairing.similarity, strict=True):
        rows, columns = linear_sum_assignment(alignment[np.ix_(gt_ids, track_ids)] * similarity, maximize=True)
        ious = similarity[rows, columns]
        hit = ious[None, :] >= HOTA_ALPHAS[:, None] - _EPS
        iou_sum += (hit * ious).sum(axis=1)
        matches[:, gt_ids[rows], track_ids[columns]] += hit
    tp = matches.sum(axis=(1, 2))
    gt_counts, track_counts = gt_counts[None, :, None], track_counts[None, None, :]
    return Hota(
        tp=tp,
        fn=pairing.num_gt - tp,
        fp=pairing.num_tracked - tp,
        ass_a=(matches * matches / (gt_counts + track_counts - matches)).sum(axis=(1, 2)),
        ass_re=(matches * matches / gt_counts).sum(axis=(1, 2)),
        ass_pr=(matches * matches / track_counts).sum(axis=(1, 2)),
        iou_sum=iou_sum,
    )


def _global_alignment(pairing: Pairing) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Boxes of every identity and the Jaccard alignment of every pair of identities (HOTA, section 5)."""
    gt_counts, track_counts = np.zeros(pairing.num_gt_ids), np.zeros(pairing.num_track_ids)
    potential = np.zeros((pairing.num_gt_ids, pairing.num_track_ids))
    for gt_ids, track_ids, similarity in zip(pairing.gt_ids, pairing.track_ids, pairing.similarity, strict=True):
        gt_counts[gt_ids] += 1
        track_counts[track_ids] += 1
        rest = similarity.sum(axis=0)[None, :] + similarity.sum(axis=1)[:, None] - similarity
        potential[np.ix_(gt_ids, track_ids)] += np.divide(
            similarity, rest, out=np.zeros_like(similarity), where=rest > _EPS
        )
    return gt_counts, track_counts, potential / (gt_counts[:, None] + track_counts[None, :] - potential)


def best_pairs(score: FloatArray) -> tuple[IntArray, IntArray]:
    """Rows and columns of the one-to-one matching with the highest total; pairs that score 0 are left out."""
    rows, columns = linear_sum_assignment(score, maximize=True)
    kept = score[rows, columns] > _EPS
    return rows[kept], columns[kept]


def score(gt: BoxTable, tracks: BoxTable, num_frames: int | None = None) -> TrackingScores:
    """Score one sequence; every row of ``gt`` is a target.

    >>> boxes = BoxTable.make([0, 1], [1, 1], [[0, 0, 4, 4], [1, 0, 5, 4]])
    >>> score(boxes, boxes).as_dict()["HOTA"]
    100.0
    """
    pairing = pair(gt, tracks, num_frames)
    return TrackingScores(clear=clear(pairing), identity=identity(pairing), hota=hota(pairing))


def score_sequences(sequences: Mapping[str, tuple[BoxTable, BoxTable]]) -> dict[str, TrackingScores]:
    """Scores of ``{name: (ground truth, tracks)}`` by name, and of all together under ``"COMBINED"``."""
    scores = {name: score(gt, tracks) for name, (gt, tracks) in sequences.items()}
    return scores | {"COMBINED": total(scores.values())}
