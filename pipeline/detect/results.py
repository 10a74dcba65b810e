"""What a detector found, as COCO's files and as pictures, and COCO's scores of it.

Results: https://cocodataset.org/#format-results, with compressed RLE. Scores are those of pycocotools, which the
``detect`` extra installs.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import supervision as sv

from pipeline.core.errors import ConfigError, LabelFileError
from pipeline.core.records import Detections
from pipeline.detect.model import Image, Instances
from pipeline.detect.settings import DetectorSettings
from pipeline.formats.json_file import load_json
from pipeline.formats.rle import encode_mask

STATISTICS: Final = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
"""COCO's twelve numbers, in pycocotools' order; -1 where there is nothing to measure."""


def coco_results(found: Instances, image_id: int, settings: DetectorSettings) -> list[dict[str, Any]]:
    """One image's detections as entries of a COCO results file."""
    entries = []
    for box, score, label, mask in zip(found.xyxy, found.scores, found.labels, found.masks, strict=True):
        left, top, right, bottom = (float(value) for value in box)
        entries.append(
            {
                "image_id": image_id,
                "category_id": settings.category_ids[int(label)],
                "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
                "score": round(float(score), 5),
                "segmentation": encode_mask(mask),
            }
        )
    return entries


def coco_data_set(
    images: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]], settings: DetectorSettings
) -> dict[str, Any]:
    """Results as a whole data set, with names of images and categories, for ``run --detections``.

    Args:
        images: Entries with ``id``, ``file_name``, ``height`` and ``width``.
        results: From :func:`coco_results`.
        settings: The detector's.
    """
    annotations = []
    for number, entry in enumerate(results):
        area = float(entry["bbox"][2] * entry["bbox"][3])
        annotations.append({"id": number + 1, "area": round(area, 2), "iscrowd": 0, **entry})
    categories = [
        {"id": number, "name": name}
        for number, name in zip(settings.category_ids, settings.categories, strict=True)
    ]
    return {"images": list(images), "annotations": annotations, "categories": categories}


def to_detections(found: Instances, settings: DetectorSettings) -> Detections:
    """Instances as the record that the tracker takes."""
    return Detections(
        found.xyxy,
        found.scores,
        tuple(settings.categories[label] for label in found.labels.tolist()),
        np.zeros(len(found), np.int64),
    )


def index_mask(found: Instances, image_hw: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """All masks in one map ``(H, W)``: 1, 2, ... by rank, the better detection in front; at most 255."""
    merged = np.zeros(image_hw, np.uint8)
    for rank in reversed(range(min(len(found), 255))):
        merged[found.masks[rank]] = rank + 1
    return merged


def draw(image: Image, found: Instances, settings: DetectorSettings) -> Image:
    """The image with masks, boxes, names and scores."""
    detections = to_supervision(found, settings)
    lookup = sv.ColorLookup.CLASS
    labels = [
        f"{settings.categories[label]} {score:.2f}"
        for label, score in zip(found.labels.tolist(), found.scores.tolist(), strict=True)
    ]
    thickness = max(1, min(image.shape[:2]) // 200)
    drawn = image.copy()
    drawn = sv.MaskAnnotator(opacity=0.4, color_lookup=lookup).annotate(drawn, detections)
    drawn = sv.BoxAnnotator(thickness=thickness, color_lookup=lookup).annotate(drawn, detections)
    text = sv.LabelAnnotator(text_scale=max(0.3, min(image.shape[:2]) / 900), text_padding=2, color_lookup=lookup)
    return np.asarray(text.annotate(drawn, detections, labels), np.uint8)


def to_supervision(found: Instances, settings: DetectorSettings) -> Any:
    """Instances as ``supervision.Detections``, with names under ``class_name``."""
    return sv.Detections(
        xyxy=found.xyxy,
        mask=found.masks,
        confidence=found.scores,
        class_id=found.labels.astype(int),
        data={"class_name": np.asarray([settings.categories[n] for n in found.labels.tolist()], dtype=str)},
    )


def score_results(
    annotations: Path, results: Sequence[Mapping[str, Any]], *, kinds: Iterable[str] = ("bbox", "segm")
) -> dict[str, dict[str, Any]]:
    """COCO's scores.

    Args:
        annotations: The true objects, a COCO JSON file.
        results: Entries of a COCO results file.
        kinds: ``bbox`` and ``segm``.

    Returns:
        By kind: the statistics by name, ``by_category`` (AP by name), and ``precision`` at IoU 0.5 and 0.75 (means
        over the categories at the 101 recalls of COCO), all in [0, 1].

    Raises:
        ConfigError: pycocotools is not installed.
        LabelFileError: The annotations or results cannot be used.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ConfigError(
            "COCO's scores need pycocotools; install it with pip install 'liftstream[detect]'"
        ) from error
    scores: dict[str, dict[str, Any]] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _open_truth(COCO, annotations)
        for kind in kinds:
            own = [dict(entry) for entry in results]
            if not own:
                scores[kind] = _nothing_found(truth)
                continue
            try:
                evaluation = COCOeval(truth, truth.loadRes(own), kind)
            except (AssertionError, KeyError, TypeError, ValueError) as error:
                raise LabelFileError(
                    f"the results do not fit {annotations}: {error or 'an image of theirs is not in it'}"
                ) from error
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            scores[kind] = _statistics(evaluation, truth)
    return scores


def _open_truth(coco: Any, path: Path) -> Any:
    content = load_json(path)
    needed = {"images", "annotations", "categories"}
    if not isinstance(content, dict) or not needed <= set(content):
        raise LabelFileError(f"{path}: needs 'images', 'annotations' and 'categories' (COCO JSON)")
    truth = coco()
    truth.dataset = content
    for number, entry in enumerate(content["annotations"]):
        entry.setdefault("id", number + 1)
        entry.setdefault("iscrowd", 0)
        entry.setdefault("area", entry["bbox"][2] * entry["bbox"][3])
    truth.createIndex()
    return truth


def _statistics(evaluation: Any, truth: Any) -> dict[str, Any]:
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # IoU, recall, category; all areas, 100 detections
    thresholds = np.asarray(evaluation.params.iouThrs)
    names = [truth.cats[number]["name"] for number in evaluation.params.catIds]
    by_category = {name: _mean(precision[:, :, place]) for place, name in enumerate(names)}
    curves = {
        str(iou): [_mean(values) for values in precision[int(np.argmin(abs(thresholds - iou)))]]
        for iou in (0.5, 0.75)
    }
    values = {name: round(float(value), 5) for name, value in zip(STATISTICS, evaluation.stats, strict=True)}
    return {**values, "by_category": by_category, "precision": curves}


def _nothing_found(truth: Any) -> dict[str, Any]:
    curves = {str(iou): [0.0] * 101 for iou in (0.5, 0.75)}
    names = [category["name"] for category in truth.cats.values()]
    return {**dict.fromkeys(STATISTICS, 0.0), "by_category": dict.fromkeys(names, 0.0), "precision": curves}


def _mean(values: npt.NDArray[np.float64]) -> float:
    """Mean of what could be measured; -1 where nothing could."""
    measured = values[values > -1]
    return round(float(measured.mean()), 5) if measured.size else -1.0
