"""Keypoints from parts: the centers of unsupervised parts, and a linear regression from them.

Protocol of SCOPS (Hung et al. 2019, section 4) and Choudhury et al. 2021, section 4.1, which Amir et al. 2021 use:
parts are found without labels; their centers are mapped to the labeled keypoints by a linear regression on the
training images; the error on the test images is the distance of predicted and true point, divided by the distance
of the eyes (CelebA) or by the box (CUB: along x by its width, along y by its height).

Not specified there, and decided here: a part that an image lacks gets its mean center over the training images; a
keypoint is regressed on the training images where it is visible, and counts in the test images where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import MediaError
from pipeline.formats.landmarks import LandmarkImage

Points = npt.NDArray[np.float64]


def part_centers(parts: npt.NDArray[np.uint8], num_parts: int) -> Points:
    """Centers of the parts of an image.

    Args:
        parts: uint8 ``(H, W)``: the part of each pixel from 1, 0 is background.
        num_parts: Number of parts.

    Returns:
        float64 ``(num_parts, 2)`` as (x, y) in pixels; NaN where a part has no pixel.

    >>> part_centers(np.array([[1, 1], [0, 2]], np.uint8), 3).tolist()
    [[1.0, 0.5], [1.5, 1.5], [nan, nan]]
    """
    counts = np.bincount(parts.ravel(), minlength=num_parts + 1)[1 : num_parts + 1].astype(np.float64)
    rows, columns = np.indices(parts.shape)
    sums = [
        np.bincount(parts.ravel(), weights=values.ravel() + 0.5, minlength=num_parts + 1)[1 : num_parts + 1]
        for values in (columns, rows)
    ]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack(sums, axis=1) / counts[:, None]


@dataclass(frozen=True, slots=True)
class Regression:
    """A linear map from part centers to keypoints, in shares of the image's width and height.

    Attributes:
        mean: ``(2 P,)``: the mean centers, for parts that are missing.
        weights: ``(2 P + 1, 2 K)``; the last row is the constant.
    """

    mean: Points
    weights: Points

    def predict(self, centers: Points) -> Points:
        """``(N, P, 2)`` centers to ``(N, K, 2)`` keypoints, both in shares of width and height."""
        return (_design(centers, self.mean) @ self.weights).reshape(len(centers), -1, 2)


def fit_regression(centers: Points, points: Points, visible: npt.NDArray[np.bool_]) -> Regression:
    """Least squares over the images where a keypoint is visible.

    Args:
        centers: ``(N, P, 2)``, NaN where a part is missing.
        points: ``(N, K, 2)``.
        visible: ``(N, K)``.

    Raises:
        MediaError: A keypoint is visible in no training image.
    """
    flat = centers.reshape(len(centers), -1)
    known = ~np.isnan(flat)
    counts = known.sum(axis=0)
    mean = np.where(counts > 0, np.where(known, flat, 0.0).sum(axis=0) / np.maximum(counts, 1), 0.5)
    design = _design(centers, mean)
    columns = []
    for place in range(points.shape[1]):
        seen = visible[:, place]
        if not seen.any():
            raise MediaError(f"keypoint {place + 1} is visible in no training image; use more of them")
        columns.append(np.linalg.lstsq(design[seen], points[seen, place], rcond=None)[0])
    return Regression(mean, np.concatenate(columns, axis=1))


def _design(centers: Points, mean: Points) -> Points:
    flat = centers.reshape(len(centers), -1)
    filled = np.where(np.isnan(flat), mean, flat)
    return np.concatenate([filled, np.ones((len(filled), 1))], axis=1)


def landmark_errors(predicted: Points, images: Sequence[LandmarkImage]) -> Points:
    """Normalized distances, ``(N, K)``; NaN where a keypoint is not visible.

    Args:
        predicted: ``(N, K, 2)`` in image pixels.
        images: The N images.
    """
    true = np.stack([image.points for image in images])
    units = np.asarray([image.unit for image in images])[:, None]
    distances = np.linalg.norm((predicted - true) / units, axis=2)
    distances[~np.stack([image.visible for image in images])] = np.nan
    return np.asarray(distances, np.float64)
