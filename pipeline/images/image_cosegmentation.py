"""Co-segmentation of a set of images: the foreground they share, its parts, and pixels.

Source: Amir et al. 2021, section 4 and supplement (https://arxiv.org/abs/2112.05814): saliency votes on clusters
of all images' descriptors, parts by clustering the foreground again, dense CRF, GrabCut, crops as augmentation,
and a filter for images that do not belong.

Differs from the reference: augmented images are marked, not recognized by name; all images come back in their
order, outliers with empty masks; without a salient cluster all masks are empty; the CRF's energies are
interpolated, not nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from pipeline.core.arrays import FloatArray, IntArray, normalize_rows
from pipeline.core.kmeans import squared_distances
from pipeline.core.records import PatchGrid
from pipeline.images.grabcut import grabcut
from pipeline.images.set_foreground import fit_shared_foreground
from stages.cosegment.cosegmentation import (
    KmeansOptions,
    fit_clusters,
    fit_parts,
    relative_saliency,
    three_stage_parts,
    vote_logits,
)
from stages.cosegment.crf import dense_crf
from stages.cosegment.foreground import fit_discriminant

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class SetImage:
    """One image of the set.

    Attributes:
        image: uint8 ``(H, W, 3)``.
        grid: Where its cells lie.
        rows: float32 ``(N, C)``, L2-normalized.
        saliency: float32 ``(N,)`` in [0, 1].
        cls: float32 ``(C',)``, or None.
        original: False for an augmentation, which joins the clustering but never votes or comes back.
        evidence: float32 ``(N,)``, :func:`~pipeline.images.set_foreground.object_evidence`; where all images have
            it, the discriminant is trained on it in place of the saliency.
        part_rows: float32 ``(N, d)``, unit rows that parts are clustered on; None where those are ``rows``.
    """

    image: npt.NDArray[np.uint8]
    grid: PatchGrid
    rows: FloatArray
    saliency: FloatArray
    cls: FloatArray | None = None
    original: bool = True
    evidence: FloatArray | None = None
    part_rows: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class SetOptions:
    """How a set is co-segmented.

    Attributes:
        kmeans: Of both stages.
        method: ``vote`` (the paper's) or ``discriminant`` (self-taught, for saliency that is weak).
        saliency_threshold: Mean saliency of a cluster to get an image's vote.
        relative: Whether that threshold counts in multiples of the image's mean saliency.
        votes_percent: Share of the images that must agree.
        num_parts: Number of parts; None lets the elbow rule find it.
        three_stage: Keep only the parts all images have in common.
        part_elbow: Elbow of the middle of the three stages.
        grabcut: Refine the foreground with GrabCut.
        crf: Refine the parts with a dense CRF.
        outlier_cosine: Images whose CLS descriptor has a smaller cosine to the mean are left out; None keeps all.
    """

    kmeans: KmeansOptions
    method: Literal["vote", "discriminant"] = "vote"
    saliency_threshold: float = 0.065
    relative: bool = False
    votes_percent: float = 75.0
    num_parts: int | None = 4
    three_stage: bool = False
    part_elbow: float = 0.94
    grabcut: bool = True
    crf: bool = True
    outlier_cosine: float | None = None


@dataclass(frozen=True, slots=True)
class SetResult:
    """One image's result.

    Attributes:
        foreground: bool ``(H, W)``.
        parts: uint8 ``(H, W)``, 0 is background, parts count from 1 and mean the same in all images.
        outlier: Whether the image was left out.
    """

    foreground: BoolArray
    parts: npt.NDArray[np.uint8]
    outlier: bool = False


def find_outliers(cls: list[FloatArray], min_cosine: float = 0.7) -> BoolArray:
    """Which images do not belong: CLS descriptors too far from the unnormalized mean of all.

    >>> find_outliers([np.array([1.0, 0.0]), np.array([1.0, 0.1]), np.array([-0.2, 1.0])], 0.6).tolist()
    [False, False, True]
    """
    stacked = np.stack(cls).astype(np.float32)
    mean = normalize_rows(stacked.mean(axis=0)[None])[0]
    return np.asarray(normalize_rows(stacked) @ mean < min_cosine, bool)


def cosegment_images(images: list[SetImage], options: SetOptions) -> list[SetResult]:
    """Foreground and parts of every original image, in their order.

    Args:
        images: The set; an augmentation may stand anywhere.
        options: How.
    """
    originals = [image for image in images if image.original]
    outliers = np.zeros(len(originals), bool)
    if options.outlier_cosine is not None and all(image.cls is not None for image in originals):
        outliers = find_outliers(
            [c for image in originals if (c := image.cls) is not None], options.outlier_cosine
        )
    inliers = [image for image, out in zip(originals, outliers, strict=True) if not out]
    found = iter(_cosegment([*inliers, *(i for i in images if not i.original)], len(inliers), options))
    return [_nothing(image) if out else next(found) for image, out in zip(originals, outliers, strict=True)]


@dataclass(frozen=True, slots=True)
class PartModel:
    """Foreground and parts that were found in a set, for further images.

    Attributes:
        logits: From L2-normalized rows ``(N, C)`` to their log odds of foreground ``(N,)``.
        parts: Centroids of the parts, ``(P, d)``.
        centers: Centroids of the background; None where the foreground was not found by voting.
        options: How.
        scale: What squared distances to the parts are multiplied with, so that the weights of the CRF fit them.
    """

    logits: Callable[[FloatArray], FloatArray]
    parts: FloatArray
    centers: FloatArray | None
    options: SetOptions
    scale: float = 1.0

    def apply(self, image: SetImage) -> SetResult:
        """Foreground and parts of one image."""
        logits = self.logits(image.rows)
        if not (logits > 0).any():
            return _empty(image)
        soft = torch.from_numpy(np.clip(logits, -4.0, 4.0).reshape(1, *image.grid.grid_hw))
        foreground = np.asarray(image.grid.upsample(soft)[0].numpy() > 0, bool)
        if self.options.grabcut:
            foreground = grabcut(image.image, foreground)
        labels = self.pixel_labels(image, logits)
        numbered = np.where(labels == len(self.parts), 0, labels + 1).astype(np.uint8)
        return SetResult(foreground, numbered)

    def pixel_labels(self, image: SetImage, logits: FloatArray) -> IntArray:
        """Part of every pixel, 0 .. P - 1, int64 ``(H, W)``; P is background."""
        energy = image.grid.upsample(torch.from_numpy(self._energies(image, logits))).numpy()
        if self.options.crf:
            return np.asarray(dense_crf(energy, image.image).argmax(axis=0), np.int64)
        return np.asarray(energy.argmin(axis=0), np.int64)

    def cell_labels(self, image: SetImage, logits: FloatArray) -> IntArray:
        """Part of every cell ``(N,)`` after refinement; -1 is background."""
        labels = torch.from_numpy(self.pixel_labels(image, logits))
        cells = image.grid.sample_nearest(labels).numpy().ravel()
        return np.where(cells == len(self.parts), -1, cells)

    def _energies(self, image: SetImage, logits: FloatArray) -> FloatArray:
        """Unary energies ``(P + 1, h, w)``: squared distances to the parts and, last, to the background."""
        distances = self.scale * squared_distances(_part_rows(image, logits > 0), self.parts)
        if self.centers is not None and len(self.centers):
            background = squared_distances(image.rows, self.centers).min(axis=1)
        else:
            background = distances.min(axis=1) + np.clip(logits, -20.0, 20.0) / 20.0
        energy = np.concatenate([distances, background[:, None]], axis=1)
        energy -= energy.max(axis=1, keepdims=True)
        return np.ascontiguousarray(energy.T.reshape(-1, *image.grid.grid_hw), np.float32)


def fit_part_model(images: list[SetImage], num_voting: int, options: SetOptions) -> PartModel | None:
    """Find the foreground and the parts of a set.

    Args:
        images: The set; the first ``num_voting`` vote, the others only join the clustering.
        num_voting: Number of original images.
        options: How.

    Returns:
        The model; None where none of the voting images has foreground.
    """
    classify, centers = _foreground(images, num_voting, options)
    logits = [classify(image.rows) for image in images]
    masks = [values > 0 for values in logits]
    if not any(mask.any() for mask in masks[:num_voting]):
        return None
    rows = [_part_rows(image, mask) for image, mask in zip(images, masks, strict=True)]
    scale = 1.0
    if any(image.part_rows is not None for image in images):
        scale = _spread([image.rows for image in images]) / max(_spread(rows), 1e-9)
    if options.three_stage:
        # Only originals decide what is common; augmentations would make a part at the border look uncommon.
        parts = three_stage_parts(
            rows[:num_voting],
            masks[:num_voting],
            num_parts=options.num_parts,
            options=options.kmeans,
            part_elbow=options.part_elbow,
            relabel=lambda number, middle: PartModel(classify, middle, centers, options, scale).cell_labels(
                images[number], logits[number]
            ),
        )
    else:
        parts = fit_parts(rows, masks, num_parts=options.num_parts, options=options.kmeans)
    return PartModel(classify, parts, centers, options, scale)


def _part_rows(image: SetImage, foreground: BoolArray) -> FloatArray:
    """The rows that parts are clustered on, ``(N, d)``.

    Rows of their own are taken relative to the mean of the image's foreground: what all cells of an animal have in
    common says which kind it is, and otherwise sets the bodies of two kinds apart.
    """
    if image.part_rows is None:
        return image.rows
    if not foreground.any():
        return image.part_rows
    return np.asarray(image.part_rows - image.part_rows[foreground].mean(axis=0), np.float32)


def _spread(rows: list[FloatArray]) -> float:
    """Mean squared distance to the mean."""
    everything = np.concatenate(rows)
    return float(np.square(everything - everything.mean(axis=0)).sum(axis=1).mean())


def _cosegment(images: list[SetImage], num_voting: int, options: SetOptions) -> list[SetResult]:
    """Results of the first ``num_voting`` images; the others only join the clustering."""
    if num_voting == 0:
        return []
    model = fit_part_model(images, num_voting, options)
    return [_empty(image) if model is None else model.apply(image) for image in images[:num_voting]]


def _foreground(
    images: list[SetImage], num_voting: int, options: SetOptions
) -> tuple[Callable[[FloatArray], FloatArray], FloatArray | None]:
    """What gives log odds of foreground to cells, and the background's centroids where there are any."""
    rows = [image.rows for image in images]
    evidence = [image.evidence for image in images if image.evidence is not None]
    if options.method == "discriminant" and len(evidence) == len(images):
        return fit_shared_foreground(rows, evidence) or _nothing_salient, None
    if options.method == "discriminant":
        saliency = [relative_saliency(image.saliency) for image in images]
        still = [np.zeros_like(values) for values in saliency]
        learned = fit_discriminant(rows, saliency, still, cues="saliency")
        if learned is None:
            return _nothing_salient, None
        return learned.logits, None
    convert = relative_saliency if options.relative else np.asarray
    clusters, salient = fit_clusters(
        rows,
        [np.asarray(convert(image.saliency), np.float32) for image in images[:num_voting]],
        options=options.kmeans,
        threshold=options.saliency_threshold,
        votes_percent=options.votes_percent,
    )
    return lambda own: vote_logits(own, clusters, salient), clusters[~salient]


def _nothing_salient(rows: FloatArray) -> FloatArray:
    return np.full(len(rows), -1.0, np.float32)


def _empty(image: SetImage) -> SetResult:
    size = image.image.shape[:2]
    return SetResult(np.zeros(size, bool), np.zeros(size, np.uint8))


def _nothing(image: SetImage) -> SetResult:
    return replace(_empty(image), outlier=True)
