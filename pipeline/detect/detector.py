"""A detector as a function of an image, for code that knows nothing of this package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.detect.model import Image
from pipeline.detect.results import to_supervision
from pipeline.detect.weights_file import load_any_detector


def load_detector(argument: str = "") -> Callable[[Image], Any]:
    """The entry ``pipeline.detect:load_detector:CHECKPOINT`` of ``run --detector``.

    Args:
        argument: A detector's weights: a file written by ``train-detect``, or Detectron2's.

    Returns:
        A function from a uint8 RGB image ``(H, W, 3)`` to ``supervision.Detections`` with boxes, scores, masks,
        class numbers (places in the detector's list) and names (``data["class_name"]``).

    Raises:
        ConfigError: No file is named.
        WeightsError: The file cannot be used.
    """
    if not argument:
        raise ConfigError("name the detector's weights: --detector pipeline.detect:load_detector:CHECKPOINT")
    detector = load_any_detector(Path(argument)).detector

    def detect(image: Image) -> Any:
        return to_supervision(detector.detect([image])[0], detector.settings)

    return detect
