"""Foreground without labels: a linear discriminant that is self-trained from weak cues.

Two weak cues say where an object may be: saliency and motion relative to the camera. Averaged over a window of
frames they are right more often than not, and the descriptors are rich enough to generalize from them: the cells
with the strongest cues are taken as foreground, Fisher's linear discriminant is fitted between them and the rest,
its posterior (with the cues as prior) replaces the labels, and so on for a few rounds. The result is one linear
function of the descriptor, so it needs no cue on later frames and labels equal descriptors equally everywhere.

Sources: Fisher 1936 for the discriminant; Amir et al. 2021 for saliency as the seed. The self-training is this
project's; ``docs/parts.md`` has what each cue gives.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import FloatArray
from pipeline.core.state import State
from stages.cosegment.motion import moving_evidence

_DIMENSIONS = 64
_CUE_RIDGE = 0.03
_SHRINKAGE = 0.1
_SEED_DEVIATIONS = 2.0
_ROUNDS = 6
_PRIOR_WEIGHT = 1.0
_SALIENCY_FLOOR = 0.2
_SHARE_LIMITS = (0.002, 0.5)
# Standard deviation of the motion evidence from which motion is a full witness, and the correlation with it from
# which saliency counts fully.
_CLEAR_MOTION = 0.3
_AGREEMENT = 0.3
_LEAST_WEIGHT = 0.05
# Mean squared distance of unit descriptors from their mean below which a window is uniform. Real scenes have 0.3
# and more.
_SPREAD_MIN = 0.02


@dataclass(frozen=True, slots=True)
class CueScale:
    """Mean and standard deviation of the cues over the window, so that later frames are read on the same scale."""

    saliency: tuple[float, float]
    motion: tuple[float, float]
    total: float

    @classmethod
    def from_state(cls, state: State) -> CueScale:
        """The scale of a :meth:`state`."""
        return cls(tuple(state["saliency"]), tuple(state["motion"]), state["total"])

    def state(self) -> State:
        """The fields by name."""
        return {"saliency": list(self.saliency), "motion": list(self.motion), "total": self.total}

    @classmethod
    def of(cls, saliency: FloatArray, motion: FloatArray) -> CueScale:
        """The scale of a window's log saliency and motion evidence; see :func:`saliency_weight`."""
        (mean, deviation), of_motion = [(float(v.mean()), float(v.std())) for v in (saliency, motion)]
        of_saliency = mean, deviation / saliency_weight(saliency, motion)
        bare = cls(of_saliency, of_motion, 1.0)
        return cls(of_saliency, of_motion, float(bare.combine(saliency, motion).std()))

    def combine(self, saliency: FloatArray, motion: FloatArray) -> FloatArray:
        """Sum of the standardised cues, standardised itself; a constant cue adds nothing."""
        total = np.zeros_like(saliency)
        for values, (mean, deviation) in ((saliency, self.saliency), (motion, self.motion)):
            if deviation > 1e-6:
                total = total + (values - mean) / deviation
        return np.asarray(total / self.total if self.total > 1e-6 else total, np.float32)


@dataclass(frozen=True, slots=True)
class Moments:
    """Weighted first and second moments of the projected descriptors of both classes.

    Attributes:
        weight: Cells of background and foreground (fractions of cells count).
        sums: float64 ``(2, d)``.
        products: float64 ``(d, d)``, of both classes together.
    """

    weight: npt.NDArray[np.float64]
    sums: npt.NDArray[np.float64]
    products: npt.NDArray[np.float64]

    @classmethod
    def of(
        cls, points: FloatArray, labels: FloatArray, products: npt.NDArray[np.float64] | None = None
    ) -> Moments:
        """Moments of ``(N, d)`` points with foreground probabilities ``(N,)``."""
        both = np.stack([1.0 - labels, labels]).astype(np.float64)
        if products is None:
            products = np.asarray(points.T @ points, np.float64)
        return cls(both.sum(axis=1), both @ points, products)

    def blend(self, other: Moments, keep: float) -> Moments:
        """These moments faded by ``keep``, with the other's added so that the total weight stays."""
        gain = (1.0 - keep) * self.weight.sum() / max(other.weight.sum(), 1e-12)
        return Moments(
            keep * self.weight + gain * other.weight,
            keep * self.sums + gain * other.sums,
            keep * self.products + gain * other.products,
        )

    def discriminant(self, ridge: float) -> tuple[FloatArray, float]:
        """Fisher's weights ``(d,)`` and bias; positive is foreground."""
        total = self.weight.sum()
        share = float(np.clip(self.weight[1] / total, *_SHARE_LIMITS))
        means = self.sums / np.maximum(self.weight, 1e-9)[:, None]
        between = means[1] - means[0]
        within = self.products / total - share * (1.0 - share) * np.outer(between, between)
        within[np.diag_indices_from(within)] += ridge
        weights = np.linalg.solve(within, between)
        # Half the log odds: the full prior of a small object would cost it its border.
        bias = -0.5 * float((means[0] + means[1]) @ weights) + 0.5 * float(np.log(share / (1.0 - share)))
        return weights.astype(np.float32), bias


@dataclass(frozen=True, slots=True)
class Discriminant:
    """A linear function of unit descriptors whose sign is foreground, and what it needs to adapt.

    Attributes:
        mean: float32 ``(C,)``.
        basis: float32 ``(C, d)``.
        weights: float32 ``(d,)``.
        bias: Scalar.
        ridge: Added to the within-class covariance.
        scale: Of the cues.
        moments: Of the classes so far.
    """

    mean: FloatArray
    basis: FloatArray
    weights: FloatArray
    bias: float
    ridge: float
    scale: CueScale
    moments: Moments

    def state(self) -> State:
        """The fields by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moments = {field.name: getattr(self.moments, field.name) for field in fields(self.moments)}
        return {**values, "scale": self.scale.state(), "moments": moments}

    @classmethod
    def from_state(cls, state: State) -> Discriminant:
        """The discriminant of a :meth:`state`."""
        return cls(
            **{**state, "scale": CueScale.from_state(state["scale"]), "moments": Moments(**state["moments"])}
        )

    def logits(self, rows: FloatArray) -> FloatArray:
        """Log odds of foreground of unit descriptors ``(N, C)``."""
        direction = self.basis @ self.weights
        return np.asarray(rows @ direction + (self.bias - float(self.mean @ direction)), np.float32)

    def updated(
        self,
        rows: FloatArray,
        saliency: FloatArray,
        motion_px: FloatArray,
        keep: float,
        *,
        background: npt.NDArray[np.bool_] | None = None,
    ) -> Discriminant:
        """The discriminant after more cells, earlier ones faded by ``keep``.

        Args:
            rows: float32 ``(N, C)``, unit descriptors.
            saliency: ``(N,)``, relative to the frame's mean.
            motion_px: ``(N,)``, motion relative to the camera.
            keep: Weight of earlier cells, 0 to 1.
            background: bool ``(N,)``, cells known to be background.
        """
        points = np.asarray((rows - self.mean) @ self.basis, np.float32)
        cues = self.scale.combine(log_saliency(saliency), moving_evidence(motion_px))
        labels = _logistic(points @ self.weights + self.bias + _PRIOR_WEIGHT * cues)
        if background is not None:
            labels = np.where(background, np.float32(0.0), labels)
        moments = self.moments.blend(Moments.of(points, labels), keep)
        weights, bias = moments.discriminant(self.ridge)
        return Discriminant(self.mean, self.basis, weights, bias, self.ridge, self.scale, moments)


def fit_discriminant(
    rows: list[FloatArray], saliency: list[FloatArray], motion_px: list[FloatArray], *, cues: str = "both"
) -> Discriminant | None:
    """Train a discriminant on a window of frames.

    Args:
        rows: For each frame float32 ``(N, C)``, L2-normalized.
        saliency: For each frame ``(N,)``, relative to the frame's mean.
        motion_px: For each frame ``(N,)``, see :func:`stages.cosegment.motion.object_motion`.
        cues: ``both``, ``saliency`` or ``motion``.

    Returns:
        The discriminant, or None where it cannot be trained: the descriptors are all similar, the cues are
        constant, or no direction of the descriptors correlates with the cues.
    """
    everything = np.concatenate(rows)
    mean = everything.mean(axis=0)
    centered = everything - mean
    if len(everything) < 8 or float(np.square(centered).sum(axis=1).mean()) < _SPREAD_MIN:
        return None
    log_values = np.concatenate([log_saliency(values) for values in saliency])
    moving = np.concatenate([moving_evidence(values) for values in motion_px])
    if cues == "motion":
        log_values = np.zeros_like(log_values)
    elif cues == "saliency":
        moving = np.zeros_like(moving)
    scale = CueScale.of(log_values, moving)
    prior = scale.combine(log_values, moving)
    if float(prior.std()) < 1e-6:
        return None
    basis = _principal_basis(centered)
    points = np.asarray(centered @ basis, np.float32)
    return _self_train(mean, basis, points, prior, scale)


def _self_train(
    mean: FloatArray, basis: FloatArray, points: FloatArray, prior: FloatArray, scale: CueScale
) -> Discriminant | None:
    products = np.asarray(points.T @ points, np.float64)
    size = basis.shape[1]
    variance = float(np.trace(products)) / len(points) / size
    regular = products / len(points) + _CUE_RIDGE * variance * np.eye(size)
    cue = points @ np.linalg.solve(regular, points.T.astype(np.float64) @ prior / len(points))
    labels = (cue > cue.mean() + _SEED_DEVIATIONS * cue.std()).astype(np.float32)
    ridge = _SHRINKAGE * variance
    for _ in range(_ROUNDS):
        if labels.sum() < 2 or labels.sum() > len(labels) - 2:
            return None
        moments = Moments.of(points, labels, products)
        weights, bias = moments.discriminant(ridge)
        labels = _logistic(points @ weights + bias + _PRIOR_WEIGHT * prior)
    return Discriminant(mean, basis, weights, bias, ridge, scale, moments)


def saliency_weight(saliency: FloatArray, motion: FloatArray) -> float:
    """How much saliency counts beside motion, 0.05 to 1: less where a clear motion contradicts it.

    Saliency is sometimes the crowd behind the dancer. Where something moves clearly, what is salient should be
    correlated with it; where nothing does, saliency is all there is and counts fully.

    Args:
        saliency: Log saliency ``(N,)`` of the cells of a window.
        motion: Their motion evidence ``(N,)``.
    """
    deviations = float(saliency.std()), float(motion.std())
    if min(deviations) < 1e-6:
        return 1.0
    covariance = float(((saliency - saliency.mean()) * (motion - motion.mean())).mean())
    agreement = np.clip(covariance / (deviations[0] * deviations[1]) / _AGREEMENT, 0.0, 1.0)
    clearness = min(1.0, deviations[1] / _CLEAR_MOTION)
    return max(_LEAST_WEIGHT, float(1.0 - clearness * (1.0 - agreement)))


def log_saliency(relative: FloatArray) -> FloatArray:
    """Saliency on a scale on which its long tail does not dominate."""
    return np.asarray(np.log(np.maximum(relative, 0.0) + _SALIENCY_FLOOR), np.float32)


def _principal_basis(centered: FloatArray) -> FloatArray:
    """The leading principal directions ``(C, d)``, from every fourth row."""
    sample = centered[::4] if len(centered) >= 4 * _DIMENSIONS else centered
    _, vectors = np.linalg.eigh(sample.T @ sample)
    return np.ascontiguousarray(vectors[:, -min(_DIMENSIONS, centered.shape[1]) :], np.float32)


def _logistic(values: npt.NDArray[np.floating]) -> FloatArray:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(values, -30.0, 30.0))), np.float32)
