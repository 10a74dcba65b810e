"""A classifier per object, learned from given masks alone, that corrects propagated labels where it is certain.

Matches carry edges well but drift: what leaks into a mask stays in it. A linear classifier on the frozen features
of the frames with given masks does not learn from its own errors. It is a ridge regression to +1 and -1 with
balanced classes, as in the target models of online trackers (Henriques et al., High-Speed Tracking with Kernelized
Correlation Filters, TPAMI 2015, section 3; Bhat et al., Learning What to Learn for Video Object Segmentation, ECCV
2020, section 3). Differs from those: its weights are never updated with its own results. Only the offset and the
scale of its scores follow the frame: two numbers per object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.propagate.config import TargetModelConfig
from stages.propagate.label_memory import Memory

REGULARIZATION = 0.01
"""Of the ridge regression, relative to the mean variance of a channel."""

SEEN = 1e-3
"""Labels below this are not changed: the classifier alone never finds an object."""

CONFIDENT = 0.9
"""Cells with more than this of an object, or less than one minus this, tell where its scores are in a frame."""

SURROUND_CELLS = 4
"""How far from an object background cells count for that."""

PRIOR_CELLS = 5.0
"""The scores of the reference, 1 and -1, count as much as so many cells of the frame."""

LEAST_SEPARATION = 0.1
"""Lower bound of half the difference of the mean scores on an object and around it."""


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


@dataclass(frozen=True, slots=True)
class Corrected:
    """Labels float32 ``(K + 1, h s, w s)``, background first: after the classifier's corrections.

    Attributes:
        labels: What is remembered and voted with in later frames.
        mask: What the written mask is made of.
        estimate: What the confidence is made of; does not sum to 1.
    """

    labels: Tensor
    mask: Tensor
    estimate: Tensor


def correct(model: TargetModel, descriptors: Tensor, labels: Tensor, settings: TargetModelConfig) -> Corrected:
    """The corrections of a frame.

    Args:
        model: Classifiers of the K objects.
        descriptors: Of the frame, ``(C, h, w)``.
        labels: Propagated, float32 ``(K + 1, h s, w s)``.
        settings: ``propagate.target_model``.
    """
    scores, separation = calibrate(model.scores(descriptors), labels)
    weight, certainty = settings.weight, settings.certainty
    labels = correct_labels(labels, scores, weight=weight, certainty=certainty, band_cells=settings.band_cells)
    estimate = blend_scores(labels, scores, weight=weight, certainty=certainty)
    if not settings.mask_weight:
        return Corrected(labels, labels, estimate)
    # Borders included, which correct_labels leaves alone: it is not fed back, so it cannot blur them.
    mask = blend_scores(labels, scores, weight=settings.mask_weight * separation, certainty=0.0)
    return Corrected(labels, _normalized(mask[1:]), estimate)


def calibrate(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Scores shifted and scaled to the frame: 1 on average on each object, and -1 around it.

    As the appearance of an object changes, so do all its scores; the difference between the object and what is
    around it lasts longer. Read from confident cells; the fewer there are, the less is changed.

    Args:
        scores: float32 ``(K, h, w)`` from :meth:`TargetModel.scores`.
        labels: float32 ``(K + 1, h s, w s)``, background first.

    Returns:
        The scores, and how well they separate each object from what is around it ``(K, 1, 1)``: half of the
        difference of the means, up to 1. NaN where an object was never given.

    >>> scores = torch.tensor([[[0.5] * 20 + [-1.0] * 4]])
    >>> labels = torch.tensor([[[0.0] * 20 + [1.0] * 4], [[1.0] * 20 + [0.0] * 4]])
    >>> calibrated, separation = calibrate(scores, labels)
    >>> [round(value, 2) for value in (*calibrated[0, 0, [0, -1]].tolist(), separation.item())]
    [0.88, -1.0, 0.8]
    """
    objects = F.avg_pool2d(labels[1:], labels.shape[1] // scores.shape[1])
    near = F.max_pool2d((objects > 0.5).to(scores.dtype), 2 * SURROUND_CELLS + 1, stride=1, padding=SURROUND_CELLS)
    on = _prior_mean(scores, objects > CONFIDENT, prior=1.0)
    around = _prior_mean(scores, (objects < 1 - CONFIDENT) & (near > 0), prior=-1.0)
    separation = ((on - around) / 2).clamp(min=LEAST_SEPARATION)
    return (scores - (on + around) / 2) / separation, separation


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
    return _normalized(torch.where(known, corrected, objects))


def blend_scores(labels: Tensor, scores: Tensor, *, weight: float | Tensor, certainty: float) -> Tensor:
    """The labels' and the classifier's estimate of where the objects are, in one.

    A score s is a probability of (1 + s) / 2. It counts wherever it is certain and the labels see the object,
    borders included.

    Args:
        labels: float32 ``(K + 1, h s, w s)``, background first, on s x s parts per cell.
        scores: float32 ``(K, h, w)`` from :meth:`TargetModel.scores`.
        weight: Share of the classifier, in [0, 1]; of each one in a tensor ``(K, 1, 1)``.
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
    blended = objects + weight * ((scores + 1) / 2 - objects)
    return torch.cat([labels[:1], torch.where(counts, blended, objects)])


def _on_parts(scores: Tensor, parts: int) -> Tensor:
    """Scores ``(K, h, w)`` in [-1, 1] on parts of cells."""
    return F.interpolate(scores[None], scale_factor=parts, mode="bilinear", align_corners=False)[0].clamp(-1, 1)


def _normalized(objects: Tensor) -> Tensor:
    """Objects' maps ``(K, h, w)`` with the background they leave in front; scaled where they exceed 1 together."""
    total = objects.sum(0, keepdim=True)
    return torch.cat([(1 - total).clamp(min=0), objects / total.clamp(min=1)])


def _prior_mean(scores: Tensor, cells: Tensor, *, prior: float) -> Tensor:
    """Mean score ``(K, 1, 1)`` of an object's chosen cells ``(K, h, w)`` and of ``PRIOR_CELLS`` with the prior."""
    total = torch.where(cells, scores.clamp(-1, 1), 0).sum((1, 2), keepdim=True) + PRIOR_CELLS * prior
    return total / (cells.sum((1, 2), keepdim=True) + PRIOR_CELLS)


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
