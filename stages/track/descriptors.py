"""Descriptors of boxes: features pooled by ROIAlign, optionally weighted by saliency or by the object's mask."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.core.device_stream import streams_of
from pipeline.core.errors import ConfigError
from pipeline.core.host_copy import fetch
from pipeline.core.records import Detections, Features, LabelMap
from stages.track.boxes import matching_objects
from stages.track.config import RoiConfig
from stages.track.roi_align import pool_boxes


def describe_boxes(
    features: Features,
    labels: LabelMap | None,
    found: Detections,
    roi: RoiConfig,
    facet: str = "",
    *,
    center: bool = False,
) -> npt.NDArray[np.float32]:
    """The features inside boxes by ROIAlign, weighted as ``roi`` says.

    All cells of a frame share a large common part that makes any two boxes similar; ``center`` subtracts it.

    Args:
        features: The frame's features.
        labels: Its propagated objects, for weighting by mask; None weights all cells equally.
        found: The boxes.
        roi: How to pool and weight.
        facet: Which features; the first facet if empty.
        center: Subtract the mean of the frame's cells.

    Returns:
        float32 ``(N, C, bins, bins)``, on the host, not normalized.

    Raises:
        ConfigError: The features do not hold the facet.
    """
    weights = _weights(features, labels, found, roi)
    boxes = torch.from_numpy(found.xyxy)
    maps = _facet(features, facet)
    pooled = pool_boxes(maps, boxes, features.grid, roi.spec, weights=weights)
    if center:
        # Pooling averages cells, so the mean can be subtracted from the few pooled values.
        pooled = pooled - maps.float().mean(dim=(1, 2))[None, :, None, None].to(pooled)
    values: npt.NDArray[np.float32] = fetch(streams_of(pooled.device), [pooled])[0]
    return values


def _facet(features: Features, name: str) -> Tensor:
    if not name:
        return features.data
    if name not in features.extra:
        held = sorted(features.extra) or "only the first facet"
        raise ConfigError(
            f"track.facet is '{name}', but the features hold {held}: add it to extract.facets, "
            "or leave track.facet empty for the first one"
        )
    return features.extra[name]


def _weights(features: Features, labels: LabelMap | None, found: Detections, roi: RoiConfig) -> Tensor | None:
    """Weights of the cells, ``(h, w)`` for all boxes or ``(N, h, w)``, at least the floor; None: all equal."""
    floor = roi.weight_floor
    if roi.weighting == "saliency" and features.saliency is not None:
        return floor + (1 - floor) * features.saliency
    if roi.weighting == "mask" and labels is not None:
        return floor + (1 - floor) * _object_weights(labels, found)
    return None


def _object_weights(labels: LabelMap, found: Detections) -> Tensor:
    """Probability that each cell belongs to the box's object, ``(N, h, w)``; to any object if the box has none."""
    ids = np.where(found.object_ids > 0, found.object_ids, matching_objects(found, labels))
    channel = {object_id: n + 1 for n, object_id in enumerate(labels.object_ids)}
    any_object = 1 - labels.probs[0]
    maps = [labels.probs[channel[n]] if n in channel else any_object for n in ids.tolist()]
    return torch.stack(maps) if maps else labels.probs.new_zeros(0, *labels.probs.shape[1:])
