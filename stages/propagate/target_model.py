"""A classifier per object, learned from given masks alone, that corrects propagated labels where it is certain.

Matches carry edges well but drift: what leaks into a mask stays in it. A linear classifier on the frozen features
of the frames with given masks does not learn from its own errors. It is a ridge regression to +1 and -1 with
balanced classes, as in the target models of online trackers (Henriques et al., High-Speed Tracking with Kernelized
Correlation Filters, TPAMI 2015, section 3; Bhat et al., Learning What to Learn for Video Object Segmentation, ECCV
2020, section 3). Differs from those: it is never updated with its own results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.propagate.label_memory import Memory

REGULARIZATION = 0.01
"""Of the ridge regression, relative to the mean variance of a channel."""

SEEN = 1e-3
"""Labels below this are not changed: the classifier alone never finds an object."""


@dataclass(frozen=True, slots=True)
class TargetModel:
    """Linear classifiers: weights ``(C + 1, K)``, the bias last; NaN where an object was never given."""

    weights: Tensor

    @classmethod
    def fit(cls, references: Sequence[Memory]) -> TargetModel:
        """Learn every object from the references in which it was given.

        Args:
            references: At least one, all with labels of the same K + 1 channels.
        """
        num_objects = references[0].labels.shape[0] - 1
        fitted = [_fit_object(references, channel) for channel in range(1, num_objects + 1)]
        return cls(torch.stack(fitted, dim=1))

    def scores(self, descriptors: Tensor) -> Tensor:
        """Scores ``(K, h, w)`` of a frame's descriptors ``(C, h, w)``: near 1 on the object, near -1 off it."""
        rows = descriptors.permute(1, 2, 0)
        return (rows @ self.weights[:-1] + self.weights[-1]).permute(2, 0, 1)


def correct_labels(
    labels: Tensor, scores: Tensor, *, weight: float, certainty: float, band_cells: float
) -> Tensor:
    """Move labels to the classifier's decision where it is certain, outside a band around each border.

    Args:
        labels: float32 ``(K + 1, h s, w s)``, background first, on s x s parts per cell.
        scores: float32 ``(K, h, w)`` from :meth:`TargetModel.scores`.
        weight: Share of the classifier at a score of 1 or -1, in [0, 1].
        certainty: Absolute score from which it counts, growing linearly to 1.
        band_cells: Half the width of the band around the border of each object, in cells.

    Returns:
        float32 ``(K + 1, h s, w s)``, summing to 1 where the labels did.

    >>> labels, scores = torch.tensor([0.4, 0.6]).view(2, 1, 1), torch.tensor([[[-1.0]]])
    >>> corrected = correct_labels(labels, scores, weight=0.5, certainty=0.5, band_cells=1)
    >>> [round(value, 2) for value in corrected.flatten().tolist()]
    [0.7, 0.3]
    """
    parts = labels.shape[1] // scores.shape[1]
    scores = _on_parts(scores, parts)
    share = weight * ((scores.abs() - certainty) / (1 - certainty)).clamp(0, 1)
    objects = labels[1:]
    corrected = objects + share * ((scores > 0).to(labels.dtype) - objects)
    known = scores.isfinite() & (objects > SEEN) & ~_near_border(objects, round(band_cells * parts))
    objects = torch.where(known, corrected, objects)
    total = objects.sum(0, keepdim=True)
    objects = objects / total.clamp(min=1)
    return torch.cat([(1 - total).clamp(min=0), objects])


def blend_scores(labels: Tensor, scores: Tensor, *, weight: float, certainty: float) -> Tensor:
    """The labels' and the classifier's estimate of where the objects are, for the confidence alone.

    A score s is a probability of (1 + s) / 2. It counts wherever it is certain and the labels see the object,
    borders included: it is not fed back, so that it cannot blur them.

    Args:
        labels: float32 ``(K + 1, h s, w s)``, background first, on s x s parts per cell.
        scores: float32 ``(K, h, w)`` from :meth:`TargetModel.scores`.
        weight: Share of the classifier, in [0, 1].
        certainty: Absolute score from which it counts.

    Returns:
        float32 ``(K + 1, h s, w s)``, in [0, 1]; the background is that of the labels.

    >>> labels, scores = torch.tensor([0.4, 0.6]).view(2, 1, 1), torch.tensor([[[-0.6]]])
    >>> [round(value, 2) for value in blend_scores(labels, scores, weight=0.5, certainty=0.3).flatten().tolist()]
    [0.4, 0.4]
    """
    scores = _on_parts(scores, labels.shape[1] // scores.shape[1])
    objects = labels[1:]
    counts = (scores.abs() > certainty) & (objects > SEEN)  # never where an object has no classifier: NaN
    return torch.cat([labels[:1], torch.where(counts, torch.lerp(objects, (scores + 1) / 2, weight), objects)])


def _on_parts(scores: Tensor, parts: int) -> Tensor:
    """Scores ``(K, h, w)`` in [-1, 1] on parts of cells."""
    return F.interpolate(scores[None], scale_factor=parts, mode="bilinear", align_corners=False)[0].clamp(-1, 1)


def _near_border(objects: Tensor, radius: int) -> Tensor:
    """Where the windows of ``2 radius + 1`` around a position are neither all inside nor all outside an object."""
    inside = (objects > 0.5).to(torch.float32)
    size = 2 * radius + 1
    most = F.max_pool2d(inside, size, stride=1, padding=radius)
    least = -F.max_pool2d(-inside, size, stride=1, padding=radius)
    return most != least


def _fit_object(references: Sequence[Memory], channel: int) -> Tensor:
    """Weights ``(C + 1,)`` of one object by ridge regression; both classes weigh the same in each frame."""
    size = references[0].descriptors.shape[0] + 1
    moments = references[0].descriptors.new_zeros(size, size)
    target = references[0].descriptors.new_zeros(size)
    for memory in references:
        if channel not in memory.given:
            continue
        rows = memory.descriptors.permute(1, 2, 0).flatten(0, 1)
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        parts = memory.labels.shape[1] // memory.descriptors.shape[1]
        signed = 2 * F.avg_pool2d(memory.labels[channel : channel + 1], parts)[0].flatten() - 1
        weighted = rows * _balanced(signed)[:, None]
        moments += weighted.T @ rows
        target += weighted.T @ signed.sign()
    if not bool(moments.any()):
        return torch.full_like(target, torch.nan)
    ridge = REGULARIZATION * moments.diagonal()[:-1].mean() * torch.eye(size, device=moments.device)
    ridge[-1, -1] = 0
    weights: Tensor = torch.linalg.solve(moments + ridge, target)
    return weights


def _balanced(signed: Tensor) -> Tensor:
    """Weights of cells with labels in [-1, 1]: certain cells count most, and each class sums to 1."""
    weights = signed.abs()
    inside = signed > 0
    totals = torch.where(inside, weights[inside].sum(), weights[~inside].sum())
    return weights / totals.clamp(min=1e-6)
