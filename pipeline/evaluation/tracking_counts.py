"""The counts behind CLEAR, IDF1 and HOTA, and the ratios made of them.

All counts add up: the score of several sequences is the sum of their counts and the ratios of that sum, never
the mean of ratios. So each family is a dataclass of counts with ``+``, and its ratios are properties.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

#: Localization thresholds over which HOTA is averaged.
HOTA_ALPHAS: FloatArray = np.linspace(0.05, 0.95, 19, dtype=np.float64)


class Counts:
    """Adds dataclasses of counts field by field: the base of every score."""

    def __add__(self, other: Self) -> Self:
        return type(self)(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Clear(Counts):
    """Counts of CLEAR at IoU 0.5. ``iou_sum`` is over the true positives.

    Attributes:
        tp: Matched boxes.
        fn: Missed ground-truth boxes.
        fp: Tracked boxes without ground truth.
        id_switches: Matches to another track than the one last matched.
        mostly_tracked: Identities found in more than 80 % of their frames.
        partly_tracked: Found in 20 to 80 %.
        mostly_lost: Found in less than 20 %.
        fragmentations: Interruptions of identities while they are tracked.
        iou_sum: Sum of IoU over the matches.
    """

    tp: int = 0
    fn: int = 0
    fp: int = 0
    id_switches: int = 0
    mostly_tracked: int = 0
    partly_tracked: int = 0
    mostly_lost: int = 0
    fragmentations: int = 0
    iou_sum: float = 0.0

    @property
    def mota(self) -> float:
        """Multiple object tracking accuracy; can be negative."""
        return (self.tp - self.fp - self.id_switches) / max(1, self.tp + self.fn)

    @property
    def motp(self) -> float:
        """Mean IoU of the matches."""
        return self.iou_sum / max(1, self.tp)

    @property
    def recall(self) -> float:
        """Found part of the ground truth."""
        return self.tp / max(1, self.tp + self.fn)

    @property
    def precision(self) -> float:
        """Right part of the tracked boxes."""
        return self.tp / max(1, self.tp + self.fp)


@dataclass(frozen=True)
class Identity(Counts):
    """Counts of the identity metrics: boxes under the best one-to-one assignment of whole tracks."""

    idtp: int = 0
    idfn: int = 0
    idfp: int = 0

    @property
    def idf1(self) -> float:
        """F1 of boxes that carry the right identity."""
        return self.idtp / max(1.0, self.idtp + 0.5 * self.idfp + 0.5 * self.idfn)

    @property
    def recall(self) -> float:
        """IDR."""
        return self.idtp / max(1, self.idtp + self.idfn)

    @property
    def precision(self) -> float:
        """IDP."""
        return self.idtp / max(1, self.idtp + self.idfp)


def _zeros() -> FloatArray:
    return np.zeros(len(HOTA_ALPHAS))


@dataclass(frozen=True)
class Hota(Counts):
    """Counts of HOTA for each of the 19 thresholds, each float64 ``(19,)``.

    ``ass_a``, ``ass_re`` and ``ass_pr`` are sums over the true positives of the association accuracy, recall and
    precision of the pair of identities they belong to; ``iou_sum`` sums their IoU.
    """

    tp: FloatArray
    fn: FloatArray
    fp: FloatArray
    ass_a: FloatArray
    ass_re: FloatArray
    ass_pr: FloatArray
    iou_sum: FloatArray

    @classmethod
    def zero(cls) -> Hota:
        """Nothing counted."""
        return cls(*(_zeros() for _ in range(7)))

    @property
    def det_a_curve(self) -> FloatArray:
        """Detection accuracy at each threshold."""
        return self.tp / np.maximum(1, self.tp + self.fn + self.fp)

    @property
    def ass_a_curve(self) -> FloatArray:
        """Association accuracy at each threshold."""
        return self.ass_a / np.maximum(1, self.tp)

    @property
    def hota_curve(self) -> FloatArray:
        """HOTA at each threshold."""
        return np.sqrt(self.det_a_curve * self.ass_a_curve)

    @property
    def hota(self) -> float:
        """Mean of the curve."""
        return float(self.hota_curve.mean())

    @property
    def det_a(self) -> float:
        """Mean detection accuracy."""
        return float(self.det_a_curve.mean())

    @property
    def ass_a_mean(self) -> float:
        """Mean association accuracy."""
        return float(self.ass_a_curve.mean())

    @property
    def loc_a(self) -> float:
        """Mean localization accuracy; 1 where nothing was matched."""
        return float((np.maximum(1e-10, self.iou_sum) / np.maximum(1e-10, self.tp)).mean())


@dataclass(frozen=True)
class TrackingScores(Counts):
    """The three families of counts of one sequence, or of several added up."""

    clear: Clear
    identity: Identity
    hota: Hota

    def as_dict(self) -> dict[str, float | int]:
        """Ratios in percent and counts, by their usual names, ready for JSON and tables."""
        percent: dict[str, float] = {
            "HOTA": self.hota.hota,
            "DetA": self.hota.det_a,
            "AssA": self.hota.ass_a_mean,
            "LocA": self.hota.loc_a,
            "MOTA": self.clear.mota,
            "MOTP": self.clear.motp,
            "IDF1": self.identity.idf1,
            "IDR": self.identity.recall,
            "IDP": self.identity.precision,
        }
        counts: dict[str, Any] = {
            "TP": self.clear.tp,
            "FN": self.clear.fn,
            "FP": self.clear.fp,
            "IDSW": self.clear.id_switches,
            "MT": self.clear.mostly_tracked,
            "PT": self.clear.partly_tracked,
            "ML": self.clear.mostly_lost,
            "Frag": self.clear.fragmentations,
            "IDTP": self.identity.idtp,
            "IDFN": self.identity.idfn,
            "IDFP": self.identity.idfp,
        }
        return {name: 100 * value for name, value in percent.items()} | counts


_CountsT = TypeVar("_CountsT", bound=Counts)


def total(scores: Iterable[_CountsT]) -> _CountsT:
    """The sum of at least one set of counts.

    Raises:
        ValueError: There is none.
    """
    items = list(scores)
    if not items:
        raise ValueError("no scores to add up")
    result = items[0]
    for item in items[1:]:
        result = result + item
    return result
