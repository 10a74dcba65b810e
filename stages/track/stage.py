"""Stage: boxes become tracks, by what they look like and where they were expected.

Detections (from a file, a detector, or the propagated objects) get one descriptor each by ROIAlign over the
features and are matched to tracks by descriptor and by overlap with a motion-predicted box; see
:mod:`stages.track.roi_align`, :mod:`stages.track.kalman`, :mod:`stages.track.association`. The method is
tracking by instance retrieval with frozen features (Analyzing Local Representations of Self-supervised Vision
Transformers, 2024, section on object retrieval) inside the usual two-round association (ByteTrack, Zhang et al.
2022, https://arxiv.org/abs/2110.06864; BoT-SORT, Aharon et al. 2022, https://arxiv.org/abs/2206.14651).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.core.arrays import box_iou, normalize_rows
from pipeline.core.errors import ConfigError
from pipeline.core.records import Detections, Features, Frame, LabelMap, Packet, Track
from stages.track.association import assign
from stages.track.config import RoiConfig, TrackConfig
from stages.track.roi_align import pool_boxes
from stages.track.tracks import TrackBook

DetectionSource = Mapping[int, Detections] | Callable[[Frame], Detections]


class Tracker:
    """Follows boxes through the frames. One pass, no look-ahead.

    Invariant: a track's id belongs to one object for ever; what is kept is bounded by the tracks and gallery
    sizes in the config, not by the length of the video. One instance tracks one video; make a new one for the
    next.

    Args:
        config: Every field is explained in ``configs/tracking.yaml``.
        detections: Boxes by frame index, or a function that finds them in a frame; None takes the boxes of the
            propagated objects, and every object keeps its own id as track id.
    """

    def __init__(self, config: TrackConfig, *, detections: DetectionSource | None = None) -> None:
        self.config = config
        self.warnings: list[str] = []
        self._detections = detections
        self._book: TrackBook | None = None
        self._frames = 0
        self._boxes = 0

    def __call__(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        """Add the tracks of each frame; every packet that goes in comes out, in order."""
        for packet in packets:
            yield replace(packet, tracks=self._track(packet))

    def report(self) -> dict[str, Any]:
        """Counts for ``run.json``."""
        book = self._book
        return {
            "frames": self._frames,
            "detections": self._boxes,
            "tracks": 0 if book is None else book.num_tracks,
            "returns": 0 if book is None else book.num_returns,
        }

    def _track(self, packet: Packet) -> tuple[Track, ...]:
        self._frames += 1
        if self._detections is None:
            found = Detections.empty() if packet.labels is None else boxes_of_objects(packet.labels)
        elif callable(self._detections):
            found = self._detections(packet.frame)
        else:
            found = self._detections.get(packet.index, Detections.empty())
        found = clip_to_frame(found, packet.frame.image_hw)
        self._boxes += len(found)
        descriptors, summary = self._describe(packet, found)
        if self._detections is None:
            return self._tracks_of_objects(packet, found, summary)
        if self._book is None:
            # Ids up to 255 belong to propagated objects, which share theirs with the tracks that follow them.
            self._book = TrackBook(self.config.association, first_id=1 if packet.labels is None else 256)
        claims = np.zeros(len(found), np.int64) if packet.labels is None else _claims(found, packet.labels)
        return self._book.step(
            found,
            descriptors,
            summary,
            packet.frame.pts_seconds,
            packet.frame.image_hw,
            claims=claims,
            describe=lambda xyxy: self._describe(packet, _bare(xyxy))[0],
        )

    def _tracks_of_objects(
        self, packet: Packet, found: Detections, summary: npt.NDArray[np.float32] | None
    ) -> tuple[Track, ...]:
        """The propagated objects are associated already: a track is an object's box under the object's id."""
        if self._book is None:
            self._book = TrackBook(self.config.association, first_id=1)
        return self._book.follow(found, summary, packet.frame.pts_seconds)

    def _describe(
        self, packet: Packet, found: Detections
    ) -> tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.float32] | None]:
        """Unit descriptors for matching ``(N, C * bins * bins)`` and their mean over the bins ``(N, C)``."""
        if packet.features is None:
            return None, None
        config = self.config
        values = describe_boxes(
            packet.features, packet.labels, found, config.roi, config.facet, center=config.center
        )
        # The size is spelled out because -1 is ambiguous for a frame without boxes.
        flat = values.reshape(len(found), int(np.prod(values.shape[1:])))
        return normalize_rows(flat), normalize_rows(values.mean(axis=(2, 3)))


def describe_boxes(
    features: Features,
    labels: LabelMap | None,
    found: Detections,
    roi: RoiConfig,
    facet: str = "",
    *,
    center: bool = False,
) -> npt.NDArray[np.float32]:
    """What boxes look like: their features by ROIAlign, weighted as ``roi`` says.

    All cells of a frame share a large common part that makes every two boxes alike; ``center`` takes it away.

    Args:
        features: The frame's features.
        labels: Its propagated objects, for weighting by mask; None weighs all alike.
        found: The boxes.
        roi: How to pool and weigh.
        facet: Which features; the first if empty.
        center: Subtract the mean of the frame's cells.

    Returns:
        float32 ``(N, C, bins, bins)``, on the host, not normalised.

    Raises:
        ConfigError: The features do not hold the facet.
    """
    weights = _weights(features, labels, found, roi)
    boxes = torch.from_numpy(found.xyxy)
    maps = _facet(features, facet)
    pooled = pool_boxes(maps, boxes, features.grid, roi.spec, weights=weights)
    if center:
        # Pooling averages cells, so the mean can be taken off after it, where there is less to subtract from.
        pooled = pooled - maps.float().mean(dim=(1, 2))[None, :, None, None].to(pooled)
    values: npt.NDArray[np.float32] = pooled.cpu().numpy()
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
    """What counts inside each box: ``(h, w)``, ``(N, h, w)`` or None; never below the floor."""
    floor = roi.weight_floor
    if roi.weighting == "saliency" and features.saliency is not None:
        return floor + (1 - floor) * features.saliency
    if roi.weighting == "mask" and labels is not None:
        return floor + (1 - floor) * _object_weights(labels, found)
    return None


def boxes_of_objects(labels: LabelMap) -> Detections:
    """One box an object that has pixels in the index mask; score and confidence are the mask's confidence.

    >>> mask = np.zeros((4, 6), np.uint8)
    >>> mask[1:3, 2:5] = 7
    >>> boxes_of_objects(LabelMap(torch.zeros(2, 1, 1), (7,), mask)).xyxy.tolist()
    [[2.0, 1.0, 5.0, 3.0]]
    """
    boxes, ids, scores = [], [], []
    confidence = labels.confidence or (1.0,) * len(labels.object_ids)
    for object_id, sure in zip(labels.object_ids, confidence, strict=True):
        inside = labels.index_mask == object_id
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        if len(rows):
            boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
            ids.append(object_id)
            scores.append(sure)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        ("",) * len(ids),
        np.array(ids, np.int64),
    )


def clip_to_frame(found: Detections, image_hw: tuple[int, int]) -> Detections:
    """The boxes' parts inside the frame; boxes with no area there are left out."""
    height, width = image_hw
    boxes = np.clip(found.xyxy, 0, np.array([width, height, width, height], np.float32))
    keep = ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).nonzero()[0]
    return Detections(
        boxes[keep].astype(np.float32),
        found.scores[keep],
        tuple(found.categories[n] for n in keep),
        found.object_ids[keep],
    )


def _bare(xyxy: npt.NDArray[np.float32]) -> Detections:
    """Boxes nothing else is known of."""
    count = len(xyxy)
    return Detections(xyxy, np.ones(count, np.float32), ("",) * count, np.zeros(count, np.int64))


def _claims(found: Detections, labels: LabelMap) -> npt.NDArray[np.int64]:
    """The propagated object each box shows, 0 for none: one-to-one, by overlap of at least one half."""
    claims = np.zeros(len(found), np.int64)
    objects = boxes_of_objects(labels)
    for row, column in assign(box_iou(objects.xyxy, found.xyxy), 0.5):
        claims[column] = objects.object_ids[row]
    return claims


def _object_weights(labels: LabelMap, found: Detections) -> Tensor:
    """How much each cell belongs to the box's object, ``(N, h, w)``; to any object where the box has none."""
    ids = np.where(found.object_ids > 0, found.object_ids, _claims(found, labels))
    channel = {object_id: n + 1 for n, object_id in enumerate(labels.object_ids)}
    anything = 1 - labels.probs[0]
    maps = [labels.probs[channel[n]] if n in channel else anything for n in ids.tolist()]
    return torch.stack(maps) if maps else labels.probs.new_zeros(0, *labels.probs.shape[1:])
