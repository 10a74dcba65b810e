"""Frozen Vision Transformers: the table of backbones, their weights, and the forward for dense features."""

import pipeline.core.torchvision_ops  # noqa: F401  (before any module here imports timm)
