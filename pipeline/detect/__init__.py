"""Object detection: ViTDet with LiFT between the backbone and the pyramid."""

from pipeline.core import torchvision_ops as _torchvision_ops  # noqa: F401  (before anything imports torchvision)
from pipeline.detect.detector import load_detector
from pipeline.detect.model import Detector, Instances
from pipeline.detect.settings import DetectorSettings
from pipeline.detect.weights_file import load_any_detector, save_detector

__all__ = ["Detector", "DetectorSettings", "Instances", "load_any_detector", "load_detector", "save_detector"]
