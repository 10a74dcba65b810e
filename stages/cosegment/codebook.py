"""The codebook of a shot: foreground, clusters and parts, fitted on a window of frames and kept up to date.

The codebook of the streaming co-segmentation. Amir et al. 2021 (section 4) treat the frames of a video as a set of
images; here the same is fitted on a window of frames and then follows the stream with mini-batch k-means with
forgetting.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import FloatArray, IntArray
from pipeline.core.kmeans import assign, fit_kmeans, minibatch_update, sample_rows
from pipeline.core.state import State
from stages.cosegment.cosegmentation import (
    KmeansOptions,
    fit_clusters,
    fit_parts,
    three_stage_parts,
    vote_logits,
)
from stages.cosegment.foreground import Discriminant, fit_discriminant
from stages.cosegment.observation import Observation, motion_of
from stages.cosegment.part_count import fit_stable_parts

ForegroundMethod = Literal["discriminant", "vote"]
Cues = Literal["both", "saliency", "motion"]

# With a discriminant the clusters only measure how well the codebook fits: few rounds are enough.
_MONITOR_ROUNDS = 20
# Passes over the window in which the discriminant learns the cells known to be background.
_CORRECTION_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How a codebook is fitted; the fields are those of the stage's config."""

    kmeans: KmeansOptions
    foreground: ForegroundMethod = "discriminant"
    cues: Cues = "both"
    num_parts: int | None = 4
    three_stage: bool = False
    part_elbow: float = 0.94
    saliency_threshold: float = 2.0
    votes_percent: float = 50.0


@dataclass(frozen=True, slots=True)
class Codebook:
    """Foreground, clusters and parts of a shot.

    Attributes:
        clusters: float32 ``(K, C)``, centroids of everything.
        cluster_counts: float64 ``(K,)``, their faded member counts.
        salient: bool ``(K,)``, the clusters voted foreground; all False where the discriminant decides.
        discriminant: Decides the foreground, or None where the votes do or nothing was found.
        parts: float32 ``(P, d)``, centroids of the foreground among :attr:`Observation.for_parts`.
        part_counts: float64 ``(P,)``.
        fit_error: Mean squared distance to the clusters when fitted.
        spread: Mean squared distance of those rows to their mean when fitted, the scale of their distances.
    """

    clusters: FloatArray
    cluster_counts: npt.NDArray[np.float64]
    salient: npt.NDArray[np.bool_]
    discriminant: Discriminant | None
    parts: FloatArray
    part_counts: npt.NDArray[np.float64]
    fit_error: float
    spread: float

    def state(self) -> State:
        """The fields by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "discriminant": None if self.discriminant is None else self.discriminant.state()}

    @classmethod
    def from_state(cls, state: State) -> Codebook:
        """The codebook of a :meth:`state`."""
        learned = state["discriminant"]
        return cls(**{**state, "discriminant": None if learned is None else Discriminant.from_state(learned)})

    @property
    def is_empty(self) -> bool:
        """Whether nothing is foreground."""
        return len(self.parts) == 0

    def logits(self, rows: FloatArray) -> FloatArray:
        """Log odds of foreground of each cell."""
        if self.discriminant is not None:
            return self.discriminant.logits(rows)
        return vote_logits(rows, self.clusters, self.salient)

    def error_of(self, rows: FloatArray) -> float:
        """How badly a frame fits, relative to the window; about 1 as long as the scene stays the same."""
        return float(assign(rows, self.clusters)[1].mean()) / max(self.fit_error, 1e-6)

    def updated(
        self, seen: Observation, forgetting: float, *, background: npt.NDArray[np.bool_] | None = None
    ) -> Codebook:
        """The codebook after one more frame; cells known to be background, ``(N,)``, are learned as such."""
        labels, _ = assign(seen.rows, self.clusters)
        clusters, counts = minibatch_update(
            self.clusters, self.cluster_counts, seen.rows, labels, forgetting=forgetting
        )
        discriminant, parts, part_counts = self.discriminant, self.parts, self.part_counts
        if discriminant is not None and seen.motion_px is not None:
            discriminant = discriminant.updated(
                seen.rows, seen.saliency, seen.motion_px, forgetting, background=background
            )
        foreground = self.logits(seen.rows) > 0
        inside = seen.for_parts[foreground if background is None else foreground & ~background]
        if len(inside) and not self.is_empty:
            members, _ = assign(inside, parts)
            parts, part_counts = minibatch_update(parts, part_counts, inside, members, forgetting=forgetting)
        return replace(
            self,
            clusters=clusters,
            cluster_counts=counts,
            discriminant=discriminant,
            parts=parts,
            part_counts=part_counts,
        )


def fit_codebook(window: list[Observation], options: FitOptions) -> Codebook:
    """Fit foreground and parts on a window of at least one frame."""
    rows = [seen.rows for seen in window]
    saliency = [seen.saliency for seen in window]
    discriminant = None
    if options.foreground == "discriminant":
        discriminant = fit_discriminant(rows, saliency, motion_of(window), cues=options.cues)
        clusters = _monitor_clusters(rows, options.kmeans)
        salient = np.zeros(len(clusters), bool)
    else:
        clusters, salient = fit_clusters(
            rows,
            saliency,
            options=options.kmeans,
            threshold=options.saliency_threshold,
            votes_percent=options.votes_percent,
        )
    everything, for_parts = np.concatenate(rows), np.concatenate([seen.for_parts for seen in window])
    members, distances = assign(everything, clusters)
    bare = Codebook(
        clusters,
        np.bincount(members, minlength=len(clusters)).astype(np.float64),
        salient,
        discriminant,
        np.zeros((0, for_parts.shape[1]), np.float32),
        np.zeros(0),
        float(distances.mean()),
        float(np.square(for_parts - for_parts.mean(axis=0)).sum(axis=1).mean()),
    )
    return with_parts(bare, window, options)


def with_parts(
    codebook: Codebook,
    window: list[Observation],
    options: FitOptions,
    background: npt.NDArray[np.bool_] | None = None,
) -> Codebook:
    """The codebook with parts fitted on its foreground in a window, without the ``background`` ``(N,)``."""
    rows = [seen.for_parts for seen in window]
    masks = [codebook.logits(seen.rows) > 0 for seen in window]
    if background is not None:
        masks = [mask & ~background for mask in masks]
    if options.three_stage:
        parts = three_stage_parts(
            rows, masks, num_parts=options.num_parts, options=options.kmeans, part_elbow=options.part_elbow
        )
    elif options.num_parts is None:
        inside_rows = [r[m] for r, m in zip(rows, masks, strict=True)]
        parts = fit_stable_parts(inside_rows, iterations=options.kmeans.iterations, redo=options.kmeans.redo)
    else:
        parts = fit_parts(rows, masks, num_parts=options.num_parts, options=options.kmeans)
    if not len(parts):
        return replace(codebook, parts=codebook.parts[:0], part_counts=codebook.part_counts[:0])
    inside: IntArray = np.concatenate([assign(r[m], parts)[0] for r, m in zip(rows, masks, strict=True)])
    return replace(codebook, parts=parts, part_counts=np.bincount(inside, minlength=len(parts)).astype(np.float64))


def foreground_rows(codebook: Codebook, window: list[Observation]) -> FloatArray:
    """The rows ``(N, d)`` of a window that parts are clustered on."""
    return np.concatenate([seen.for_parts[codebook.logits(seen.rows) > 0] for seen in window])


def with_given_parts(codebook: Codebook, rows: FloatArray, parts: FloatArray) -> Codebook:
    """The codebook with other parts ``(P, d)`` for its foreground ``(N, d)``."""
    counts = np.bincount(assign(rows, parts)[0], minlength=len(parts)).astype(np.float64)
    return replace(codebook, parts=parts, part_counts=counts)


def without_background(
    codebook: Codebook, window: list[Observation], background: npt.NDArray[np.bool_], options: FitOptions
) -> Codebook:
    """The codebook of a window, once some cells of all its frames, bool ``(N,)``, are known to be background."""
    discriminant = codebook.discriminant
    for _ in range(_CORRECTION_ROUNDS if discriminant is not None else 0):
        assert discriminant is not None
        discriminant = discriminant.updated(
            np.concatenate([seen.rows for seen in window]),
            np.concatenate([seen.saliency for seen in window]),
            np.concatenate(motion_of(window)),
            0.0,
            background=np.tile(background, len(window)),
        )
    return with_parts(replace(codebook, discriminant=discriminant), window, options, background)


def _monitor_clusters(rows: list[FloatArray], kmeans: KmeansOptions) -> FloatArray:
    training = sample_rows(rows, kmeans.sample_interval)
    return fit_kmeans(training, kmeans.max_clusters, iterations=_MONITOR_ROUNDS, redo=1)
