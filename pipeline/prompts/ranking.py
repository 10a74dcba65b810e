"""Which of many candidate regions is the object: the one that an estimate of the IoU expects most of.

The estimate is a ridge regression on :data:`pipeline.prompts.measures.MEASURES` (and what the prompts add), fitted
by ``bench prompts-fit`` on objects with known masks; ``weights.json`` holds it, with its command, data and date.
A region is not chosen by its own estimate alone: it is the one whose mean IoU with all candidates, weighted by
their estimates, is largest (minimum Bayes risk: Kumar, Byrne, Minimum Bayes-Risk Decoding for Statistical
Machine Translation, NAACL 2004, section 2). Candidates that nearly agree with it are then averaged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from pipeline.core.arrays import FloatArray
from pipeline.prompts.measures import MEASURES
from pipeline.prompts.views import BoolArray

WEIGHTS_FILE = Path(__file__).with_name("weights.json")
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "click": (*MEASURES, "click_depth"),
    "further": (*MEASURES, "click_depth", "agreement"),
    "box": (*MEASURES, "box_fit"),
}
"""What the estimate of each kind of prompt reads:

- click_depth: how near the clicks are to the middle of the region.
- agreement: IoU with the mask that the last click corrects.
- box_fit: logarithm of the IoU of the region's box with the given one.
"""
SHARPNESS: Mapping[str, float] = {"click": 5.0, "further": 5.0, "box": 40.0}
"""Of the softmax over estimates; at 5 an estimate that is higher by 0.2 has 2.7 times the weight.

The candidates of a box are more different from each other than those of clicks, and most of them are wrong.
"""
AGREEING_IOU = 0.7


@dataclass(frozen=True, slots=True)
class Weights:
    """The estimates of the three kinds of prompts.

    Attributes:
        by_kind: float ``(M,)`` for each key of ``COLUMNS``; higher estimates are better, differences are in IoU.
    """

    by_kind: Mapping[str, FloatArray]

    @classmethod
    def of(cls, values: Mapping[str, Mapping[str, float]]) -> Weights:
        """From ``{kind: {column: weight}}``.

        Raises:
            ValueError: A column is missing or unknown.
        """
        for kind, columns in COLUMNS.items():
            if set(values[kind]) != set(columns):
                raise ValueError(f"weights of {kind}: expected the columns {', '.join(columns)}")
        return cls(
            {
                kind: np.array([values[kind][name] for name in columns], np.float32)
                for kind, columns in COLUMNS.items()
            }
        )


@cache
def shipped_weights() -> Weights:
    """The weights fitted on all sequences."""
    return Weights.of(json.loads(WEIGHTS_FILE.read_text())["weights"])


@cache
def left_out_weights() -> dict[str, Weights]:
    """Weights by sequence, fitted without it and without the sequences that show the same objects."""
    return {name: Weights.of(v) for name, v in json.loads(WEIGHTS_FILE.read_text())["left_out"].items()}


def chosen(estimates: FloatArray, masks: BoolArray, sharpness: float) -> FloatArray:
    """The region that is expected to match the object best, averaged with those that agree with it.

    Args:
        estimates: ``(K,)``.
        masks: bool ``(K, P)``, the candidates on a raster.
        sharpness: Of the softmax over the estimates, a value of ``SHARPNESS``.

    Returns:
        float32 ``(P,)`` in [0, 1]: the weighted share of the agreeing candidates that contain each pixel.
    """
    weights = np.exp(sharpness * (estimates - estimates.max()))
    weights /= weights.sum()
    overlaps = pairwise_iou(masks)
    best = int((overlaps @ weights).argmax())
    agreeing = weights * (overlaps[best] > AGREEING_IOU)
    if not agreeing.any():  # the best region is empty on the raster
        agreeing[best] = 1
    return np.asarray(agreeing @ masks.astype(np.float32) / agreeing.sum(), np.float32)


def pairwise_iou(masks: BoolArray) -> FloatArray:
    """IoU ``(K, K)`` of masks ``(K, P)``; 0 where both are empty."""
    values = masks.astype(np.float32)
    shared, areas = values @ values.T, values.sum(axis=1)
    union = areas[:, None] + areas[None] - shared
    return np.asarray(shared / union.clip(1e-6), np.float32)
