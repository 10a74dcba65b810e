"""Boxes of one frame: from propagated objects, clipped to the frame, and matched to objects."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import box_iou
from pipeline.core.records import Detections, LabelMap
from stages.track.association import assign

_SAME_OBJECT_IOU = 0.5
"""A detection with at least this IoU with an object's box shows that object."""


def boxes_of_objects(labels: LabelMap) -> Detections:
    """One box per object that has pixels in the index mask; its score is the confidence of the mask.

    >>> import torch
    >>> mask = np.zeros((4, 6), np.uint8)
    >>> mask[1:3, 2:5] = 7
    >>> boxes_of_objects(LabelMap(torch.zeros(2, 1, 1), (7,), mask)).xyxy.tolist()
    [[2.0, 1.0, 5.0, 3.0]]
    """
    boxes, ids, scores = [], [], []
    confidences = labels.confidence or (1.0,) * len(labels.object_ids)
    for object_id, confidence in zip(labels.object_ids, confidences, strict=True):
        inside = labels.index_mask == object_id
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        if len(rows):
            boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
            ids.append(object_id)
            scores.append(confidence)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        ("",) * len(ids),
        np.array(ids, np.int64),
    )


def clip_to_frame(found: Detections, image_hw: tuple[int, int]) -> Detections:
    """The parts of the boxes inside the frame; boxes without area there are left out."""
    height, width = image_hw
    boxes = np.clip(found.xyxy, 0, np.array([width, height, width, height], np.float32))
    keep = ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).nonzero()[0]
    return Detections(
        boxes[keep].astype(np.float32),
        found.scores[keep],
        tuple(found.categories[n] for n in keep),
        found.object_ids[keep],
    )


def unlabeled_boxes(xyxy: npt.NDArray[np.float32]) -> Detections:
    """Boxes ``(N, 4)`` as detections of unknown category and object."""
    count = len(xyxy)
    return Detections(xyxy, np.ones(count, np.float32), ("",) * count, np.zeros(count, np.int64))


def matching_objects(found: Detections, labels: LabelMap) -> npt.NDArray[np.int64]:
    """The propagated object that each box shows, 0 for none; one-to-one, by an IoU of at least 0.5."""
    matched = np.zeros(len(found), np.int64)
    objects = boxes_of_objects(labels)
    for row, column in assign(box_iou(objects.xyxy, found.xyxy), _SAME_OBJECT_IOU):
        matched[column] = objects.object_ids[row]
    return matched
